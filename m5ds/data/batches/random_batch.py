"""Batches of random rows with any presence, for tests and profiling: no files, no decoders.

B products, M modalities, N content rows of one modality.
"""

import torch
from torch import Tensor

from m5ds.batch import Batch, ModalityRows
from m5ds.config import ModalityConfig, ModelConfig
from m5ds.inputs import RegionFeatures, TablePairs, TextTokens
from m5ds.kernels.common.philox import product_hash


def random_batch(
    spec: ModelConfig,
    present_BM: Tensor | list[list[bool]],
    *,
    vocab_size: int = 0,
    first_token: int = 5,
    cls_token: int = 2,
    seed: int = 0,
    draw: int = 0,
    ids: list[str] | None = None,
    full: bool = False,
) -> Batch:
    """A batch whose rows depend on (seed, product id, modality) only, so that products can be regrouped.

    `present_BM` bool [B, M] in the model's modality order. Lengths are random between 1 and `max_rows`, or `max_rows`
    with `full`. Tokens are drawn from [first_token, vocab_size); text begins with `cls_token`, which is never masked.
    """
    present_BM = torch.as_tensor(present_BM, dtype=torch.bool)
    ids = ids or [f"product-{number}" for number in range(len(present_BM))]
    modalities = {}
    for m, name in enumerate(spec.modality_names):
        parts = [
            _rows(spec.modalities[name], f"{seed}/{product}/{name}", vocab_size, first_token, cls_token, full)
            for product, present in zip(ids, present_BM[:, m].tolist(), strict=True)
            if present
        ]
        modalities[name] = _joined(parts, present_BM[:, m], spec.modalities[name])
    return Batch(
        ids=ids,
        product_B=torch.tensor([product_hash(product) for product in ids], dtype=torch.int64),
        draw_B=torch.full((len(ids),), draw, dtype=torch.int64),
        label_B=torch.full((len(ids),), -1, dtype=torch.int64),
        present_BM=present_BM,
        modalities=modalities,
    )


def _rows(
    settings: ModalityConfig, key: str, vocab_size: int, first_token: int, cls_token: int, full: bool
) -> dict[str, Tensor]:
    """One product's rows of one modality."""
    generator = torch.Generator().manual_seed(product_hash(key))
    spec = settings.input
    low = spec.max_rows if full else 2 if spec.dim is None else 1
    length = int(torch.randint(min(low, spec.max_rows), spec.max_rows + 1, (), generator=generator))
    rows = {
        "position_N": torch.arange(length),
        "unit_N": torch.arange(length),
        "part_N": torch.zeros(length, dtype=torch.int64),
    }
    if spec.dim is not None:
        rows["values_NF"] = torch.randn(length, spec.dim, generator=generator)
    else:
        rows["token_N"] = torch.randint(first_token, vocab_size, (length,), generator=generator)
    if isinstance(spec, TextTokens):
        rows["token_N"][0] = cls_token
        rows["unit_N"][0] = -1
    if isinstance(spec, TablePairs):
        # Pairs of a one-token key and a value of two tokens.
        rows["unit_N"] = torch.arange(length) // 3
        rows["part_N"] = (torch.arange(length) % 3 > 0).long()
    if isinstance(spec, RegionFeatures):
        rows["geometry_N5"] = torch.rand(length, 5, generator=generator)
    return rows


def _joined(parts: list[dict[str, Tensor]], present_B: Tensor, settings: ModalityConfig) -> ModalityRows:
    spec = settings.input
    length_B = torch.zeros(len(present_B), dtype=torch.int64)
    length_B[present_B] = torch.tensor([len(part["position_N"]) for part in parts], dtype=torch.int64)
    empty = {name: torch.empty(0, dtype=torch.int64) for name in ("position_N", "unit_N", "part_N")}
    if spec.dim is not None:
        empty["values_NF"] = torch.empty(0, spec.dim)
    else:
        empty["token_N"] = torch.empty(0, dtype=torch.int64)
    if isinstance(spec, RegionFeatures):
        empty["geometry_N5"] = torch.empty(0, 5)
    return ModalityRows(
        length_B=length_B,
        **{name: torch.cat([value, *(part[name] for part in parts)]) for name, value in empty.items()},
    )
