"""Validation on the held-out split: every loss, cross-modal retrieval, fused retrieval by category.

Each batch runs twice: masked, for the masked losses under the evaluation draw, and clean, for the contrastive loss
(its pool is the global validation batch) and the features. Empty products that pad the last batch are dropped.
Shape letters: N products of the split, B of a micro-batch, M modalities.
"""

from typing import Any

import torch

from m5ds.data.batches.loader import Loader
from m5ds.inputs.media import BadMedia
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.masking import PRODUCTS, count_targets
from m5ds.model.objectives.pairs import pair_name
from m5ds.train import distributed
from m5ds.train.faults import BadMediaBudget
from m5ds.train.report import retrieval
from m5ds.train.stopping import StopRequest

Report = dict[str, float]
"""`loss/NAME`, `retrieval/A->B/R@1`, `retrieval/average/ratio`, `category/P@1`, ... by name."""


@torch.no_grad()
def validate(
    engine: Any,
    model: M5ForPretraining,
    loader: Loader,
    stop: StopRequest,
    budget: BadMediaBudget,
    *,
    seed: int,
    device: torch.device,
) -> Report | None:
    """Losses and retrieval over the whole split. Collective; every rank gets the report.

    `retrieval/average/ratio` is R@1 over its chance, averaged over all ordered pairs; `retrieval/worst/ratio`
    is the least of them. Undecodable files are listed in `budget`, not counted. None where a rank asked to stop.
    """
    tasks = list(model.tasks.values())
    pairs = [pair_name(first, second) for first, second in model.pair_names]
    sums = dict.fromkeys([*tasks, *pairs], 0.0)
    targets = dict.fromkeys([*tasks, *pairs], 0.0)
    ones = dict.fromkeys([*tasks, *pairs, PRODUCTS], 1)
    rows: list[dict[str, torch.Tensor]] = []
    bad_media: list[BadMedia] = []
    engine.eval()
    steps = loader.evaluation_steps()
    for _ in range(loader.num_evaluation_steps):
        with distributed.stop_together():
            taken = next(steps)
        if distributed.sum_over_ranks({"stop": float(bool(stop.requested))})["stop"]:
            engine.train()
            loader.close()
            budget.note(bad_media)
            return None
        bad_media += taken.bad_media
        for batch in taken.micro_batches:
            gather = distributed.feature_gather([batch.num_products] * distributed.world_size())
            moved = batch.to(device)
            masked = engine(moved, counts=ones, seed=seed, masked=True, gather=gather)
            clean = engine(moved, counts=ones, seed=seed, masked=False, gather=gather)
            assert isinstance(model.config, M5Config)
            counted = count_targets(batch, model.config, seed)
            # With every count 1 a loss is its local sum.
            for name in [*tasks, *pairs]:
                losses = masked.losses if name in tasks else clean.losses
                sums[name] += float(losses[name])
                targets[name] += counted[name]
            real_B = torch.tensor([bool(product) for product in batch.ids])
            rows.append(
                {
                    "product": batch.product_B[real_B],
                    "label": batch.label_B[real_B],
                    "present": batch.present_BM[real_B],
                    "unimodal": clean.unimodal_BMD.float().cpu()[real_B],
                    "fused": clean.fused_BMD.float().cpu()[real_B],
                }
            )
    engine.train()
    budget.note(bad_media)
    report = _losses(sums, targets)
    gathered = distributed.gather_to_first({key: torch.cat([row[key] for row in rows]) for key in rows[0]})
    found: Report | None = None
    if gathered is not None:
        found = _retrieval({key: torch.cat([part[key] for part in gathered]) for key in gathered[0]}, model.names)
    return {**report, **distributed.broadcast_object(found)}


def _losses(sums: dict[str, float], targets: dict[str, float]) -> Report:
    summed = distributed.sum_over_ranks({**sums, **{f"targets/{name}": value for name, value in targets.items()}})
    return {f"loss/{name}": summed[name] / summed[f"targets/{name}"] for name in sums if summed[f"targets/{name}"]}


def _retrieval(table: dict[str, torch.Tensor], names: tuple[str, ...]) -> Report:
    """Products in order of their hash, so that the dealing of products to ranks does not matter."""
    order_N = torch.argsort(table["product"], stable=True)
    table = {key: value[order_N] for key, value in table.items()}
    report: Report = {"products": len(order_N)}
    ratios = []
    for pair, metrics in retrieval.cross_modal(table["unimodal"], table["present"], names).items():
        report.update({f"retrieval/{pair}/{name}": value for name, value in metrics.items()})
        ratios.append(metrics["R@1"] / metrics["chance"])
    if ratios:
        report["retrieval/average/ratio"] = sum(ratios) / len(ratios)
        report["retrieval/worst/ratio"] = min(ratios)
    embedding_NE = retrieval.fused_embedding(table["fused"], table["present"])
    present_N = table["present"].any(dim=1)
    by_category = retrieval.by_category(embedding_NE[present_N], table["label"][present_N])
    return {**report, **{f"category/{name}": value for name, value in by_category.items()}}
