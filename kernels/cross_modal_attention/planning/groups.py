"""Which query rows of a product share a sequence in the torch path: every visibility matrix as a few groups.

Letters: B products, M modalities, S sequences, Q and K rows of a padded sequence, P sequences of one bucket.
"""

from dataclasses import dataclass

import numpy as np

from m5ds.kernels.cross_modal_attention.spec import AttentionSpec

_POSITION_BITS = 32


@dataclass(frozen=True)
class QueryGroup:
    """Query modalities that attend in one sequence a product, over the rows of all of `keys`."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    is_causal: bool
    """One causal modality that sees only itself."""
    masked: bool
    """Some rows do not see all of the keys: the sequence needs a mask by modality and position."""

    @property
    def own_rows_only(self) -> bool:
        return self.queries == self.keys and not self.masked


def separate_groups(spec: AttentionSpec) -> list[QueryGroup]:
    """Updated query modalities by the key modalities they see; a causal modality is a group of its own."""
    groups: dict[tuple, list[int]] = {}
    for m in range(spec.num_modalities):
        if keys := spec.keys_of(m):
            groups.setdefault((keys, m if spec.is_causal(m) else None), []).append(m)
    return [
        QueryGroup(
            tuple(queries),
            keys,
            is_causal=causal is not None and keys == (causal,),
            masked=causal is not None and keys != (causal,),
        )
        for (keys, causal), queries in groups.items()
    ]


def joint_group(spec: AttentionSpec) -> list[QueryGroup]:
    """All updated query modalities in one masked sequence a product: each key row is gathered once."""
    queries = tuple(m for m in range(spec.num_modalities) if spec.keys_of(m))
    keys = tuple(sorted({key for m in queries for key in spec.keys_of(m)}))
    return [QueryGroup(queries, keys, is_causal=False, masked=True)]


def pools(groups: list[QueryGroup]) -> list[list[int]]:
    """Groups (by number) whose sequences may share a bucket: those over own rows only, the causal of them apart."""
    plain = [i for i, group in enumerate(groups) if group.own_rows_only and not group.is_causal]
    causal = [i for i, group in enumerate(groups) if group.own_rows_only and group.is_causal]
    return [pool for pool in (plain, causal) if pool] + [
        [i] for i, group in enumerate(groups) if not group.own_rows_only
    ]


@dataclass(frozen=True)
class Sequences:
    """Numpy arrays [S, M] of the rows of each sequence's queries and keys, and their [S] product and group."""

    product: np.ndarray
    group: np.ndarray
    query_len: np.ndarray
    key_len: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Sequences":
        return Sequences(self.product[chosen], self.group[chosen], self.query_len[chosen], self.key_len[chosen])


def sequences(length_BM: np.ndarray, spec: AttentionSpec, groups: list[QueryGroup], pool: list[int]) -> Sequences:
    """All sequences of the pool's groups with any query row that sees a key row; rows that see none are left out."""
    sees_any_BM = (length_BM > 0) @ np.array(spec.visibility).T
    parts = []
    for i in pool:
        query_len, key_len = np.zeros_like(length_BM), np.zeros_like(length_BM)
        queries, keys = list(groups[i].queries), list(groups[i].keys)
        query_len[:, queries] = (length_BM * sees_any_BM)[:, queries]
        key_len[:, keys] = length_BM[:, keys]
        chosen = np.flatnonzero(query_len.sum(1) > 0)
        parts.append((chosen, np.full(chosen.size, i, np.int64), query_len[chosen], key_len[chosen]))
    return Sequences(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def place(length_PM: np.ndarray, start_PM: np.ndarray, fill: int) -> np.ndarray:
    """int64 [P, longest]: start + 0, 1, ... of each sequence's segments one after another, then `fill`."""
    column = np.arange(length_PM.sum(1).max())
    end_PM = np.cumsum(length_PM, 1)
    placed = np.full((length_PM.shape[0], column.size), fill, np.int64)
    for m in np.flatnonzero(length_PM.any(0)):
        relative = column - (end_PM[:, m] - length_PM[:, m])[:, None]
        inside = (relative >= 0) & (relative < length_PM[:, m, None])
        placed = np.where(inside, relative + start_PM[:, m, None], placed)
    return placed


def mask_of(s: Sequences, group: QueryGroup, spec: AttentionSpec) -> np.ndarray | None:
    """bool [P or 1, 1, 1 or Q, K], True = visible, or None where no mask is needed.

    Padding comes after the rows of a sequence, so that causal attention over own rows only needs none.
    """
    if group.is_causal:
        return None
    num_keys = s.key_len.sum(1)
    exists_P1K = (np.arange(num_keys.max()) < num_keys[:, None])[:, None]
    if not group.masked:
        return None if exists_P1K.all() else exists_P1K[:, None]
    query_PQ, key_PK = (place(length, _first_codes(length), fill=-1) for length in (s.query_len, s.key_len))
    query_PQ1, key_P1K = query_PQ[:, :, None], key_PK[:, None, :]
    # a padded query (modality -1) sees all that exists: a softmax over nothing would be NaN
    visible = np.pad(np.array(spec.visibility), (0, 1), constant_values=True)
    mask_PQK = visible[query_PQ1 >> _POSITION_BITS, key_P1K >> _POSITION_BITS] & exists_P1K
    for m in group.queries:
        if spec.is_causal(m):
            own = (query_PQ1 >> _POSITION_BITS == m) & (key_P1K >> _POSITION_BITS == m)
            mask_PQK &= ~(own & (key_P1K > query_PQ1))
    return (mask_PQK[:1] if (mask_PQK == mask_PQK[:1]).all() else mask_PQK)[:, None]


def _first_codes(length_PM: np.ndarray) -> np.ndarray:
    """int64 [P, M]: modality << _POSITION_BITS, so that `place` tells each row's modality and position."""
    return np.broadcast_to(np.arange(length_PM.shape[1]) << _POSITION_BITS, length_PM.shape)
