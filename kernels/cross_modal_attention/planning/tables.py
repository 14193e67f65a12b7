"""Tile tables of the Triton kernels: which rows each program computes and which rows it reads (DESIGN.md section 5).

Rows of a product are not neighbours in the modality-major buffer, so tiles are made of row lists: a tile holds up to
BLOCK rows of one product whose modalities see the same modalities. Short segments therefore fill tiles together, and
absent or invisible segments are on no list. A list pads each key segment to a multiple of four with -1, since four
neighbouring keys share a Philox call (dropout.py).

A tile is five int32, named by `Tile`.
Letters: B products, M modalities, T packed rows, N tiles.
"""

import weakref
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.tiles import ATTENTION_KERNELS, SIZES, attention_tile
from m5ds.kernels.cross_modal_attention.dropout import ALIGNMENT, segment_offsets
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec

POSITION_BITS = 20
"""A row's causal code is modality << POSITION_BITS | position; a row sees no row of its modality with a larger code."""
_SHORT_TILE_SLOWDOWN = 1.6
"""Time of a score element in a short tile over that in a long one: HMMA instead of HGMMA, more re-reading of keys."""


class Tile(NamedTuple):
    """A row of a tile table, or its columns."""

    own_begin: np.ndarray
    own_end: np.ndarray
    """Bounds in the list of rows that the program owns."""
    other_begin: np.ndarray
    other_end: np.ndarray
    """Bounds in the list of rows that it loops over."""
    product: np.ndarray


TILE_WORDS = len(Tile._fields)


@dataclass(frozen=True)
class Side:
    """The tiles of one kernel: rows that programs own, rows that they loop over."""

    own_rows: Tensor
    other_rows: Tensor
    """int32 row lists, -1 = padding."""
    tiles_N5: Tensor
    """int32."""


@dataclass(frozen=True)
class Tables:
    """All tables of a launch on the layout's device. `size` is the tile size class that they were cut for."""

    queries: dict[str, Side]
    """By kernel, `fwd` and `bwd_dq`: own = query rows, other = key rows."""
    keys: Side
    """For `bwd_dkdv`: own = key rows, other = query rows."""
    code_T: Tensor
    offset_T: Tensor
    """int32: causal code and dropout offset of each row."""
    size: str


_tables: "weakref.WeakKeyDictionary[PackedLayout, dict]" = weakref.WeakKeyDictionary()


def tables_for(layout: PackedLayout, spec: AttentionSpec, *, arch: str, head_dim: int, itemsize: int) -> Tables:
    """The tables for one launch configuration, built once per layout and spec and copied to the device in one piece."""
    of_layout = _tables.setdefault(layout, {})
    key = (spec, arch, head_dim, itemsize)
    if key not in of_layout:
        size = _choose_size(layout, spec, arch=arch, head_dim=head_dim, itemsize=itemsize)
        of_layout[key] = build_tables(layout, spec, arch=arch, head_dim=head_dim, itemsize=itemsize, size=size)
    return of_layout[key]


def build_tables(
    layout: PackedLayout, spec: AttentionSpec, *, arch: str, head_dim: int, itemsize: int, size: str
) -> Tables:
    """`ValueError` where a causal segment is longer than the code can hold."""
    length_BM = _lengths(layout)
    if length_BM.size and length_BM.max() >= 1 << POSITION_BITS:
        raise ValueError(f"layout: a segment of {length_BM.max()} rows exceeds the limit of {(1 << POSITION_BITS) - 1}")
    start_BM = np.cumsum(length_BM, 0) - length_BM + np.array(layout.slab[:-1], dtype=np.int64)
    modalities = range(spec.num_modalities)
    seen, seen_by = (_groups([see(m) for m in modalities]) for see in (spec.keys_of, spec.queries_of))
    by_query = _lists(length_BM, start_BM, seen, spec, own_is_query=True)
    by_key = _lists(length_BM, start_BM, seen_by, spec, own_is_query=False)
    tiles = {kernel: attention_tile(kernel, arch, head_dim, itemsize, size) for kernel in ATTENTION_KERNELS}
    parts = [
        *by_query.rows,
        *by_key.rows,
        _cut(by_query, tiles["fwd"].block_m),
        _cut(by_query, tiles["bwd_dq"].block_m),
        _cut(by_key, tiles["bwd_dkdv"].block_n),
        *_per_row(layout, spec, length_BM),
    ]
    flat = np.concatenate([part.reshape(-1) for part in parts]).astype(np.int32)
    on_device = torch.from_numpy(flat).to(layout.device, non_blocking=True).split([part.size for part in parts])
    query, key_of_query, key, query_of_key, fwd, dq, dkdv, code, offset = (
        piece.view(part.shape) for piece, part in zip(on_device, parts, strict=True)
    )
    queries = {"fwd": Side(query, key_of_query, fwd), "bwd_dq": Side(query, key_of_query, dq)}
    return Tables(queries, Side(key, query_of_key, dkdv), code, offset, size)


def _lengths(layout: PackedLayout) -> np.ndarray:
    return np.array(layout.lengths, dtype=np.int64).reshape(layout.num_products, layout.num_modalities)


def _groups(others: list[tuple[int, ...]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(own modalities, modalities on the other side), own modalities grouped by equal others."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for m, other in enumerate(others):
        groups.setdefault(other, []).append(m)
    return [(tuple(own), other) for other, own in groups.items()]


@dataclass(frozen=True)
class _Lists:
    """Row lists of one side with all groups one after another."""

    rows: tuple[np.ndarray, np.ndarray]
    """Own rows, other rows."""
    bounds: list[tuple[np.ndarray, np.ndarray]]
    """Of each group: [B + 1] bounds of each product's run in own rows and in other rows."""
    causal: list[bool]
    """Of each group: one causal modality that sees only itself, so that tiles can be skipped."""
    own_is_query: bool


def _lists(
    length_BM: np.ndarray,
    start_BM: np.ndarray,
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]],
    spec: AttentionSpec,
    *,
    own_is_query: bool,
) -> _Lists:
    aligns = (1, ALIGNMENT) if own_is_query else (ALIGNMENT, 1)
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    bounds, base = [], [0, 0]
    for group in groups:
        of_group = []
        for side in (0, 1):
            members = list(group[side])
            listed, bound = _row_list(length_BM[:, members], start_BM[:, members], aligns[side])
            rows[side].append(listed)
            of_group.append(bound + base[side])
            base[side] += listed.size
        bounds.append(tuple(of_group))
    causal = [own == other and len(own) == 1 and spec.is_causal(own[0]) for own, other in groups]
    return _Lists((np.concatenate(rows[0]), np.concatenate(rows[1])), bounds, causal, own_is_query)


def _row_list(length_BG: np.ndarray, start_BG: np.ndarray, align: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the segments of each product one after another, each padded to `align` with -1; and [B + 1] bounds."""
    padded_BG = -(-length_BG // align) * align
    begin = np.cumsum(padded_BG) - padded_BG.reshape(-1)
    segment = np.repeat(np.arange(padded_BG.size), padded_BG.reshape(-1))
    position = np.arange(segment.size) - begin[segment]
    rows = np.where(position < length_BG.reshape(-1)[segment], start_BG.reshape(-1)[segment] + position, -1)
    return rows, np.concatenate([[0], np.cumsum(padded_BG.sum(1))])


def _cut(lists: _Lists, block: int) -> np.ndarray:
    """int64 [N, 5]: each product's own list cut into tiles of `block`, each with the other list; longest work first."""
    tiles = []
    for (own_bounds, other_bounds), causal in zip(lists.bounds, lists.causal, strict=True):
        num_tiles_B = -(-np.diff(own_bounds) // block)
        product = np.repeat(np.arange(num_tiles_B.size), num_tiles_B)
        number = np.arange(product.size) - (np.cumsum(num_tiles_B) - num_tiles_B)[product]
        begin = own_bounds[product] + number * block
        end = np.minimum(begin + block, own_bounds[product + 1])
        other_begin, other_end = other_bounds[product], other_bounds[product + 1]
        if causal and lists.own_is_query:
            # queries see no key after their own last row
            other_end = np.minimum(other_end, other_begin + end - own_bounds[product])
        elif causal:
            # keys are seen by no query before their own first row
            other_begin = np.minimum(other_end, other_begin + begin - own_bounds[product])
        tiles.append(np.stack(Tile(begin, end, other_begin, other_end, product), 1))
    tiles_N5 = np.concatenate(tiles)
    column = Tile(*tiles_N5.T)
    return tiles_N5[np.argsort(column.other_begin - column.other_end, kind="stable")]


def _per_row(layout: PackedLayout, spec: AttentionSpec, length_BM: np.ndarray) -> list[np.ndarray]:
    """Causal codes and dropout offsets [T] in packed order. Rows that are not causal all have the last code."""
    length_S = length_BM.T.reshape(-1)
    segment = np.repeat(np.arange(length_S.size), length_S)
    position = np.arange(segment.size) - (np.cumsum(length_S) - length_S)[segment]
    modality = segment // max(layout.num_products, 1)
    limit = np.where(np.array(spec.causal)[modality], position, (1 << POSITION_BITS) - 1)
    offset_BM = np.array([segment_offsets(row) for row in layout.lengths], dtype=np.int64).reshape(length_BM.shape)
    return [(modality << POSITION_BITS) | limit, offset_BM.T.reshape(-1)[segment] + position]


def _choose_size(layout: PackedLayout, spec: AttentionSpec, *, arch: str, head_dim: int, itemsize: int) -> str:
    """The size class with the least padded work over all tiles of the forward."""
    length_BM = _lengths(layout)
    work = {}
    for size in SIZES:
        tile = attention_tile("fwd", arch, head_dim, itemsize, size)
        work[size] = 0.0
        for own, other in _groups([spec.keys_of(m) for m in range(spec.num_modalities)]):
            num_queries, num_keys = length_BM[:, own].sum(1), length_BM[:, other].sum(1)
            padded_queries = -(-num_queries // tile.block_m) * tile.block_m
            padded_keys = -(-num_keys // tile.block_n) * tile.block_n
            work[size] += float((padded_queries * padded_keys).sum())
    return "short" if work["short"] * _SHORT_TILE_SLOWDOWN < work["long"] else "long"
