"""How the torch path batches a layout's attention: few padded SDPA calls over products of near-equal lengths.

A sequence is a product together with the query modalities that see the same key modalities, or, where that would gather
the same keys too often, a product with all of its query modalities under a mask. Sequences of near-equal length share a
bucket, padded to its longest. Both choices minimise a cost model fitted to measurements: 104 cases of 128 to 768 wide,
8 to 48 products, presence 0.5 to 1.0, most within 10 %.
Letters: S sequences, M modalities, P sequences of one bucket, Q and K rows of a padded sequence.
"""

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.cross_modal_attention.dropout import segment_offsets
from m5ds.kernels.cross_modal_attention.planning.groups import (
    QueryGroup,
    Sequences,
    joint_group,
    mask_of,
    place,
    pools,
    separate_groups,
    sequences,
)
from m5ds.kernels.cross_modal_attention.planning.rows import Gather, RowMap
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec

_CALL_COST = 1_100_000
"""One SDPA call forward and backward, in multiply-adds of q k^T (170 us against 1.5e-10 s each)."""
_ROW_COST = 40
"""One padded row, in score elements."""
_MASKED_COST = 1.08
"""A score element under a mask of its own, over one without."""


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


_plans: "weakref.WeakKeyDictionary[PackedLayout, dict]" = weakref.WeakKeyDictionary()


def plan_for(layout: PackedLayout, spec: AttentionSpec, width: int) -> Plan:
    """The plan for rows of `width` = heads x head dim, built once per layout and spec."""
    of_layout = _plans.setdefault(layout, {})
    if (spec, width) not in of_layout:
        of_layout[spec, width] = _build(layout, spec, width)
    return of_layout[spec, width]


@dataclass(frozen=True)
class _Grouping:
    """One way to attend: groups, and for each pool of them its sequences and the sequence numbers of its buckets."""

    groups: list[QueryGroup]
    pools: list[tuple[Sequences, list[np.ndarray]]]
    cost: float

    @classmethod
    def build(cls, length_BM: np.ndarray, spec: AttentionSpec, groups: list[QueryGroup], width: int) -> "_Grouping":
        found, total = [], 0.0
        for pool in pools(groups):
            s = sequences(length_BM, spec, groups, pool)
            masked = groups[pool[0]].masked
            parts, cost = _split(s, _MASKED_COST if masked else 1.0, _CALL_COST / width)
            found.append((s, parts))
            total += cost
        return cls(groups, found, total)


def _choose(length_BM: np.ndarray, spec: AttentionSpec, width: int) -> _Grouping:
    """The cheaper of one sequence a group, with keys gathered for each, and one masked sequence a product."""
    separate = separate_groups(spec)
    candidates = [separate] if len(separate) < 2 else [separate, joint_group(spec)]
    return min((_Grouping.build(length_BM, spec, groups, width) for groups in candidates), key=lambda g: g.cost)


def _build(layout: PackedLayout, spec: AttentionSpec, width: int) -> Plan:
    length_BM = np.array(layout.lengths, dtype=np.int64).reshape(layout.num_products, layout.num_modalities)
    start_BM = np.cumsum(length_BM, 0) - length_BM + np.array(layout.slab[:-1], dtype=np.int64)
    offset_BM = np.array([segment_offsets(row) for row in layout.lengths], dtype=np.int64).reshape(length_BM.shape)
    grouping = _choose(length_BM, spec, width)
    buckets, query_rows, key_rows, key_groups = [], [], [], []
    for s, group in (
        (all_sequences[chosen], grouping.groups[all_sequences.group[0]])
        for all_sequences, parts in grouping.pools
        for chosen in parts
    ):
        query_row_PQ = place(s.query_len, start_BM[s.product], fill=-1)
        key_row_PK = place(s.key_len, start_BM[s.product], fill=-1)
        mask = mask_of(s, group, spec)
        bucket = Bucket(
            *query_row_PQ.shape,
            key_row_PK.shape[1],
            is_causal=group.is_causal,
            mask_P1QK=None if mask is None else torch.from_numpy(mask).to(layout.device),
            product_P=torch.from_numpy(s.product).to(layout.device),
            query_offset_PQ=torch.from_numpy(place(s.query_len, offset_BM[s.product], fill=0)).to(layout.device),
            key_offset_PK=torch.from_numpy(place(s.key_len, offset_BM[s.product], fill=0)).to(layout.device),
        )
        buckets.append(bucket)
        query_rows.append(query_row_PQ.reshape(-1))
        key_rows.append(key_row_PK.reshape(-1))
        key_groups.append(np.repeat(s.group, key_row_PK.shape[1]))
    num_rows, device = layout.num_rows, layout.device
    queries = np.concatenate([np.empty(0, np.int64), *query_rows])
    keys = np.concatenate([np.empty(0, np.int64), *key_rows])
    group_of_key = np.concatenate([np.empty(0, np.int64), *key_groups])
    key_inverses = [_inverse(np.where(group_of_key == g, keys, -1), num_rows) for g in range(len(grouping.groups))]
    return Plan(
        tuple(buckets),
        RowMap(Gather.build(queries, device), (Gather.build(_inverse(queries, num_rows), device),)),
        RowMap(Gather.build(keys, device), tuple(Gather.build(i, device) for i in _merge_disjoint(key_inverses))),
    )


def _split(s: Sequences, element_cost: float, call_cost: float) -> tuple[list[np.ndarray], float]:
    """Sequence numbers of each bucket: sorted by length and cut where the cost model is least (dynamic programming)."""
    num_queries, num_keys = s.query_len.sum(1), s.key_len.sum(1)
    if num_keys.size == 0:
        return [], 0.0
    order = np.lexsort((num_queries, num_keys))
    pairs = np.stack([num_keys[order], num_queries[order]], 1)
    first = np.flatnonzero(np.r_[True, (pairs[1:] != pairs[:-1]).any(1)])
    count = np.diff(np.r_[first, order.size])
    keys, queries = pairs[first].T
    best, cut = np.zeros(first.size + 1), np.zeros(first.size, np.int64)
    for j in range(first.size):
        num = np.cumsum(count[j::-1])[::-1]
        padded_queries = np.maximum.accumulate(queries[j::-1])[::-1]
        elements = element_cost * padded_queries * keys[j]
        cost = num * (elements + _ROW_COST * (padded_queries + keys[j])) + call_cost + best[: j + 1]
        cut[j] = int(cost.argmin())
        best[j + 1] = cost[cut[j]]
    parts, end = [], first.size
    bounds = np.r_[first, order.size]
    while end > 0:
        begin = cut[end - 1]
        parts.append(np.sort(order[bounds[begin] : bounds[end]]))
        end = begin
    return parts[::-1], float(best[-1])


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
