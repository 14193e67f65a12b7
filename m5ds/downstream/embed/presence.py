"""Batches as they would be if products lacked modalities: subsets, missing rates, pairs that do not belong together.

All act on a decoded batch, so that one decoding serves every subset. Draws are keyed by product. Shape letters: B
products, M modalities of the batch, N rows of one modality.
"""

import dataclasses
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from m5ds import modality
from m5ds.batch import Batch, ModalityRows
from m5ds.kernels.common import philox

_MISSING, _RESCUE, _SHUFFLE = 1, 2, 3
"""Philox `index` of this file's draws, apart from training's modality dropout, which has index 0."""


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset in table order, small ones first: 31 for five modalities."""
    return [chosen for size in range(1, len(names) + 1) for chosen in combinations(names, size)]


def with_presence(batch: Batch, keep_BM: Tensor) -> Batch:
    """The batch without the rows of (product, modality) where `keep_BM` (bool, CPU) is False."""
    modalities = {name: _kept_rows(rows, keep_BM[:, m]) for m, (name, rows) in enumerate(batch.modalities.items())}
    return dataclasses.replace(batch, present_BM=batch.present_BM & keep_BM, modalities=modalities)


def with_modalities(batch: Batch, chosen: Sequence[str]) -> Batch:
    """The batch with only these modalities left in it; the others are absent from every product."""
    keep_M = torch.tensor([name in chosen for name in batch.modalities])
    return with_presence(batch, keep_M.expand(batch.num_products, -1))


def _kept_rows(rows: ModalityRows, keep_B: Tensor) -> ModalityRows:
    if bool((keep_B | (rows.length_B == 0)).all()):
        return rows
    keep_N = keep_B.repeat_interleave(rows.length_B).to(rows.position_N.device)
    return _select(rows, torch.where(keep_B, rows.length_B, 0), keep_N.nonzero().flatten())


def _select(rows: ModalityRows, length_B: Tensor, row_N: Tensor) -> ModalityRows:
    changed = {
        field.name: value.index_select(0, row_N)
        for field in dataclasses.fields(rows)
        if field.name != "length_B" and isinstance(value := getattr(rows, field.name), Tensor)
    }
    return dataclasses.replace(rows, length_B=length_B, **changed)


def missing_at_random(batch: Batch, rates: dict[str, float], seed: int) -> Tensor:
    """bool [B, M] to keep: each present modality is lost with its rate (0 where not named); one always stays.

    The draw of a product and modality is one number compared with the rate, so that what is missing at a low rate is
    missing at every higher one: curves over the rate are paired. A modality of rate 1 is lost even if it is the last.
    """
    names = list(batch.modalities)
    for name, rate in rates.items():
        if name not in names:
            raise ValueError(f"missing rate for {name!r}; the model has {', '.join(names)}")
        if not 0 <= rate <= 1:
            raise ValueError(f"missing rate of {name} must lie in [0, 1], got {rate}")
    word_BM = _words(batch, seed, _MISSING)
    limit_M = torch.tensor([philox.threshold(rates.get(name, 0.0)) for name in names])
    keep_BM = word_BM >= limit_M
    stays_BM = batch.present_BM & (limit_M < 2**32)
    last_B = torch.where(stays_BM, _words(batch, seed, _RESCUE), -1).argmax(1)
    lost_B = ~(keep_BM & batch.present_BM).any(1)
    keep_BM[lost_B, last_B[lost_B]] = stays_BM[lost_B, last_B[lost_B]]
    return keep_BM


def shuffled_pairs(batch: Batch, rate: float, seed: int) -> Batch:
    """A batch in which a share `rate` of each modality's segments changed hands: their content is another product's.

    The drawn products of a modality pass their rows on in a cycle, so presence and every modality taken alone stay as
    they were; only what belongs together is broken. `ValueError` for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"shuffle rate must lie in [0, 1], got {rate}")
    drawn_BM = (_words(batch, seed, _SHUFFLE) < philox.threshold(rate)) & batch.present_BM
    modalities = {}
    for m, (name, rows) in enumerate(batch.modalities.items()):
        drawn = drawn_BM[:, m].nonzero().flatten()
        source_B = torch.arange(batch.num_products)
        source_B[drawn] = drawn.roll(1)
        start_B = rows.length_B.cumsum(0) - rows.length_B
        row_N = torch.cat(
            [torch.arange(int(start_B[b]), int(start_B[b] + rows.length_B[b])) for b in source_B.tolist()]
            or [torch.empty(0, dtype=torch.int64)]
        )
        modalities[name] = _select(rows, rows.length_B[source_B], row_N.to(rows.position_N.device))
    return dataclasses.replace(batch, modalities=modalities)


def _words(batch: Batch, seed: int, index: int) -> Tensor:
    """32-bit words [B, M] keyed by (seed, product, modality)."""
    number_M = torch.tensor([modality.get(name).number for name in batch.modalities])
    return philox.random_words(
        seed=seed,
        draw=philox.EVALUATION_DRAW,
        product=batch.product_B[:, None],
        stream=philox.Stream.MODALITY_DROPOUT,
        modality=number_M,
        index=index,
    )[0]
