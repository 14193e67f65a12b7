"""How the torch path batches a layout's attention: few padded SDPA calls over products of near-equal lengths.

A sequence is a product together with the query modalities that see the same key modalities. Sequences of near-equal
length share a bucket, padded to its longest; the boundaries minimise a cost model fitted to measurements.
Letters: S sequences, M modalities, P sequences of one bucket, Q and K rows of a padded sequence.
"""

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m5ds.kernels.cross_modal_attention.dropout import segment_offsets
from m5ds.kernels.cross_modal_attention.rows import Gather, RowMap
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec
from m5ds.kernels.layout import PackedLayout

_CALL_COST = 250_000
"""One SDPA call forward and backward, in multiply-adds of q k^T (about 80 us against 3.3e-10 s each on one core)."""
_ROW_COST = 15
"""One padded row, in score elements."""


@dataclass(frozen=True)
class QueryGroup:
    """Query modalities of which every row sees exactly the rows of `keys` (up to the causal limit)."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    causal: bool

    @property
    def own_rows_only(self) -> bool:
        return self.queries == self.keys


@dataclass(frozen=True)
class Bucket:
    """One SDPA call over P sequences. Rows of all buckets lie one after another in the gathered buffers."""

    num_sequences: int
    num_queries: int
    num_keys: int
    is_causal: bool
    mask_P1QK: Tensor | None
    """bool, True = visible (Q may be 1); None where no key is padded."""
    product_P: Tensor
    """int64: index of each sequence's product in the batch."""
    query_offset_PQ: Tensor
    key_offset_PK: Tensor
    """int64: the rows' dropout offsets (dropout.py), 0 for padding."""


@dataclass(frozen=True)
class Plan:
    buckets: tuple[Bucket, ...]
    queries: RowMap
    keys: RowMap


def query_groups(spec: AttentionSpec) -> list[QueryGroup]:
    """Updated query modalities by the key modalities they see; a causal modality is a group of its own."""
    groups: dict[tuple, list[int]] = {}
    for m in range(spec.num_modalities):
        if keys := spec.keys_of(m):
            groups.setdefault((keys, m if spec.is_causal(m) else None), []).append(m)
    return [QueryGroup(tuple(queries), keys, causal is not None) for (keys, causal), queries in groups.items()]


_plans: "weakref.WeakKeyDictionary[PackedLayout, dict]" = weakref.WeakKeyDictionary()


def plan_for(layout: PackedLayout, spec: AttentionSpec, width: int) -> Plan:
    """The plan for rows of `width` = heads x head dim, built once per layout and spec."""
    of_layout = _plans.setdefault(layout, {})
    if (spec, width) not in of_layout:
        of_layout[spec, width] = _build(layout, spec, width)
    return of_layout[spec, width]


@dataclass(frozen=True)
class _Sequences:
    """Numpy arrays [S, M] of the rows of each sequence's queries and keys, and their [S] product and group."""

    product: np.ndarray
    group: np.ndarray
    query_len: np.ndarray
    key_len: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "_Sequences":
        return _Sequences(self.product[chosen], self.group[chosen], self.query_len[chosen], self.key_len[chosen])


def _build(layout: PackedLayout, spec: AttentionSpec, width: int) -> Plan:
    length_BM = np.array(layout.lengths, dtype=np.int64).reshape(layout.num_products, layout.num_modalities)
    start_BM = np.cumsum(length_BM, 0) - length_BM + np.array(layout.slab[:-1], dtype=np.int64)
    offset_BM = np.array([segment_offsets(row) for row in layout.lengths], dtype=np.int64).reshape(length_BM.shape)
    groups = query_groups(spec)
    buckets, query_rows, key_rows, key_groups = [], [], [], []
    for pool, causal in _pools(groups):
        all_sequences = _sequences(length_BM, groups, pool)
        for chosen in _split(all_sequences, width):
            s = all_sequences[chosen]
            query_row_PQ = _place(s.query_len, start_BM[s.product], fill=-1)
            key_row_PK = _place(s.key_len, start_BM[s.product], fill=-1)
            mask = _mask(s, key_row_PK, groups[pool[0]] if causal else None)
            bucket = Bucket(
                *query_row_PQ.shape,
                key_row_PK.shape[1],
                is_causal=causal and groups[pool[0]].own_rows_only,
                mask_P1QK=None if mask is None else torch.from_numpy(mask).to(layout.device),
                product_P=torch.from_numpy(s.product).to(layout.device),
                query_offset_PQ=torch.from_numpy(_place(s.query_len, offset_BM[s.product], fill=0)).to(layout.device),
                key_offset_PK=torch.from_numpy(_place(s.key_len, offset_BM[s.product], fill=0)).to(layout.device),
            )
            buckets.append(bucket)
            query_rows.append(query_row_PQ.reshape(-1))
            key_rows.append(key_row_PK.reshape(-1))
            key_groups.append(np.repeat(s.group, key_row_PK.shape[1]))
    num_rows, device = layout.num_rows, layout.device
    queries = np.concatenate([np.empty(0, np.int64), *query_rows])
    keys = np.concatenate([np.empty(0, np.int64), *key_rows])
    group_of_key = np.concatenate([np.empty(0, np.int64), *key_groups])
    key_inverses = [_inverse(np.where(group_of_key == g, keys, -1), num_rows) for g in range(len(groups))]
    return Plan(
        tuple(buckets),
        RowMap(Gather.build(queries, device), (Gather.build(_inverse(queries, num_rows), device),)),
        RowMap(Gather.build(keys, device), tuple(Gather.build(i, device) for i in _merge_disjoint(key_inverses))),
    )


def _pools(groups: list[QueryGroup]) -> list[tuple[list[int], bool]]:
    """Groups (by number) whose sequences may share a bucket, and whether they are causal."""
    plain = [i for i, group in enumerate(groups) if group.own_rows_only and not group.causal]
    causal = [i for i, group in enumerate(groups) if group.own_rows_only and group.causal]
    alone = [([i], group.causal) for i, group in enumerate(groups) if not group.own_rows_only]
    return [(pool, flag) for pool, flag in ((plain, False), (causal, True)) if pool] + alone


def _sequences(length_BM: np.ndarray, groups: list[QueryGroup], pool: list[int]) -> _Sequences:
    """All sequences of the pool's groups that have at least one query row and one key row."""
    num_products, num_modalities = length_BM.shape
    parts = []
    for i in pool:
        query_len, key_len = np.zeros_like(length_BM), np.zeros_like(length_BM)
        query_len[:, groups[i].queries] = length_BM[:, groups[i].queries]
        key_len[:, groups[i].keys] = length_BM[:, groups[i].keys]
        chosen = np.flatnonzero((query_len.sum(1) > 0) & (key_len.sum(1) > 0))
        parts.append((chosen, np.full(chosen.size, i, np.int64), query_len[chosen], key_len[chosen]))
    return _Sequences(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _split(s: _Sequences, width: int) -> list[np.ndarray]:
    """Sequence numbers of each bucket: sorted by length and cut where the cost model is least (dynamic programming)."""
    num_queries, num_keys = s.query_len.sum(1), s.key_len.sum(1)
    if num_keys.size == 0:
        return []
    order = np.lexsort((num_queries, num_keys))
    pairs = np.stack([num_keys[order], num_queries[order]], 1)
    first = np.flatnonzero(np.r_[True, (pairs[1:] != pairs[:-1]).any(1)])
    count = np.diff(np.r_[first, order.size])
    keys, queries = pairs[first].T
    call_cost = _CALL_COST / width
    best, cut = np.zeros(first.size + 1), np.zeros(first.size, np.int64)
    for j in range(first.size):
        num = np.cumsum(count[j::-1])[::-1]
        padded_queries = np.maximum.accumulate(queries[j::-1])[::-1]
        cost = num * (padded_queries * keys[j] + _ROW_COST * (padded_queries + keys[j])) + call_cost + best[: j + 1]
        cut[j] = int(cost.argmin())
        best[j + 1] = cost[cut[j]]
    parts, end = [], first.size
    bounds = np.r_[first, order.size]
    while end > 0:
        begin = cut[end - 1]
        parts.append(np.sort(order[bounds[begin] : bounds[end]]))
        end = begin
    return parts[::-1]


def _place(length_PM: np.ndarray, start_PM: np.ndarray, fill: int) -> np.ndarray:
    """int64 [P, longest]: start + 0, 1, ... of each sequence's segments one after another, then `fill`."""
    column = np.arange(length_PM.sum(1).max())
    end_PM = np.cumsum(length_PM, 1)
    placed = np.full((length_PM.shape[0], column.size), fill, np.int64)
    for m in np.flatnonzero(length_PM.any(0)):
        relative = column - (end_PM[:, m] - length_PM[:, m])[:, None]
        inside = (relative >= 0) & (relative < length_PM[:, m, None])
        placed = np.where(inside, relative + start_PM[:, m, None], placed)
    return placed


def _mask(s: _Sequences, key_row_PK: np.ndarray, causal: QueryGroup | None) -> np.ndarray | None:
    """bool [P, 1, 1 or Q, K], or None: padded keys, and for a causal modality its own later rows.

    Padding comes after the rows of a sequence, so that attention over own rows only needs no mask beside `is_causal`.
    """
    exists = (key_row_PK >= 0)[:, None, None, :]
    if causal is None:
        return None if exists.all() else exists
    if causal.own_rows_only:
        return None
    (m,) = causal.queries
    own_start = (np.cumsum(s.key_len, 1) - s.key_len)[:, m, None, None]
    column = np.arange(key_row_PK.shape[1])[None, None, :]
    row = np.arange(s.query_len.sum(1).max())[None, :, None]
    later = (column > own_start + row) & (column < own_start + s.key_len[:, m, None, None])
    return exists & ~later[:, None]


def _inverse(rows_N: np.ndarray, num_rows: int) -> np.ndarray:
    """int64 [T]: where each packed row lies in the gathered buffer, -1 where it does not."""
    inverse = np.full(num_rows, -1, np.int64)
    used = np.flatnonzero(rows_N >= 0)
    inverse[rows_N[used]] = used
    return inverse


def _merge_disjoint(inverses: list[np.ndarray]) -> list[np.ndarray]:
    """The fewest inverses with the same sum: two that use no common row become one."""
    merged: list[np.ndarray] = []
    for inverse in inverses:
        for i, other in enumerate(merged):
            if not ((inverse >= 0) & (other >= 0)).any():
                merged[i] = np.maximum(inverse, other)
                break
        else:
            merged.append(inverse)
    return merged or [np.full(inverses[0].size if inverses else 0, -1, np.int64)]
