"""Retrieval on held-out products, as validation reports it: between modalities, and by category.

Every query is ranked against the whole gallery. Ties count against the query, so that collapsed features score zero.
Scores are float32 and products come in order of their hash, so that the result does not depend on the world size.
Shape letters: N products, M modalities, E features, C a chunk of queries.
"""

from itertools import permutations

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
CHUNK = 1024


def ranks(query_NE: Tensor, gallery_NE: Tensor) -> Tensor:
    """int64 [N]: how many gallery items score at least as high as the query's own counterpart (0 = found first)."""
    parts = []
    for start in range(0, query_NE.shape[0], CHUNK):
        scores_CN = query_NE[start : start + CHUNK] @ gallery_NE.T
        own_C = scores_CN.diagonal(offset=start)
        parts.append((scores_CN >= own_C[:, None]).sum(dim=1) - 1)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def cross_modal(features_NME: Tensor, present_NM: Tensor, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """For each ordered pair `a->b` with at least two products that have both: R@1, R@5, R@10, chance of R@1, size.

    features_NME are L2-normalised; present_NM is bool, True = present.
    """
    report = {}
    for a, b in permutations(range(len(names)), 2):
        both_N = present_NM[:, a] & present_NM[:, b]
        size = int(both_N.sum())
        if size < 2:
            continue
        found = ranks(features_NME[both_N, a].float(), features_NME[both_N, b].float())
        recalls = {f"R@{k}": float((found < k).double().mean()) for k in RECALL_AT}
        report[f"{names[a]}->{names[b]}"] = {**recalls, "chance": 1 / size, "size": size}
    return report


def by_category(embedding_NE: Tensor, label_N: Tensor) -> dict[str, float]:
    """Each product queries all others; relevant are those of its category. P@1, mean average precision, their chance.

    label_N is int64, -1 = unknown: such products are left out, as are queries whose category has no other product.
    The chance is that of a random order: the expected share of relevant products (for P@1; a lower bound for mAP).
    """
    known_N = label_N >= 0
    embedding_NE, label_N = embedding_NE[known_N].float(), label_N[known_N]
    num_products = label_N.shape[0]
    precision, average, chance = [], [], []
    for start in range(0, num_products, CHUNK):
        own_C = torch.arange(start, min(start + CHUNK, num_products))
        scores_CN = embedding_NE[own_C] @ embedding_NE.T
        scores_CN[torch.arange(len(own_C)), own_C] = -torch.inf
        relevant_CN = label_N[own_C][:, None] == label_N[None, :]
        relevant_CN[torch.arange(len(own_C)), own_C] = False
        # Within a tie the irrelevant ones come first: a stable sort of [irrelevant, relevant] by score.
        first_CN = torch.argsort(relevant_CN.to(torch.int8), dim=1, stable=True)
        order_CN = torch.argsort(scores_CN.gather(1, first_CN), dim=1, descending=True, stable=True)
        hits_CN = relevant_CN.gather(1, first_CN.gather(1, order_CN)).double()[:, : num_products - 1]
        totals_C = hits_CN.sum(dim=1)
        position_N = torch.arange(1, hits_CN.shape[1] + 1, dtype=torch.float64)
        average_C = (hits_CN * hits_CN.cumsum(dim=1) / position_N).sum(dim=1) / totals_C  # NaN where nothing is asked
        asked_C = totals_C > 0
        if hits_CN.shape[1]:
            precision.append(hits_CN[asked_C, 0])
            average.append(average_C[asked_C])
            chance.append(totals_C[asked_C] / (num_products - 1))
    size = sum(len(part) for part in precision)
    if size == 0:
        return {}
    values = {"P@1": precision, "mAP": average, "chance": chance}
    return {**{name: float(torch.cat(parts).mean()) for name, parts in values.items()}, "size": size}


def fused_embedding(fused_NME: Tensor, present_NM: Tensor) -> Tensor:
    """One L2-normalised embedding [N, E] a product: the mean of its present modalities' fused summaries.

    Their sum has the mean's direction. Zeros where nothing is present.
    """
    sum_NE = (fused_NME * present_NM.to(fused_NME.dtype)[:, :, None]).sum(dim=1)
    return torch.nn.functional.normalize(sum_NE.float(), dim=1)
