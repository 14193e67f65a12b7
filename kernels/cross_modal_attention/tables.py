"""Tile tables of the Triton kernels: which rows each program computes and which rows it reads (DESIGN.md section 5).

Rows of a product are not neighbours in the modality-major buffer, so tiles are made of row lists: a tile holds up to
BLOCK rows of one product whose modalities see the same modalities. Short segments therefore fill tiles together, and
absent or invisible segments are on no list. A list pads each key segment to a multiple of four with -1, since four
neighbouring keys share a Philox call (dropout.py).

A tile is (begin, end) in its own list, (begin, end) in the other side's list, and the product: five int32.
Letters: B products, M modalities, T packed rows, N tiles.
"""

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m5ds.kernels.cross_modal_attention.dropout import ALIGNMENT, segment_offsets
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec
from m5ds.kernels.layout import PackedLayout
from m5ds.kernels.tiles import SIZES, attention_tile

POSITION_BITS = 20
"""A row's causal code is modality << POSITION_BITS | position; a row sees no row of its modality with a larger code."""
_SHORT_TILE_SLOWDOWN = 1.6
"""Time of a score element in a short tile over that in a long one: HMMA instead of HGMMA, more re-reading of keys."""


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
    query_groups = _groups([spec.keys_of(m) for m in modalities])
    key_groups = _groups([spec.queries_of(m) for m in modalities])
    parts: list[np.ndarray] = []
    for kernel in ("fwd", "bwd_dq", "bwd_dkdv"):
        tile = attention_tile(kernel, arch, head_dim, itemsize, size)
        if kernel == "bwd_dkdv":
            parts += _side(length_BM, start_BM, key_groups, spec, block=tile.block_n, own_is_query=False)
        else:
            parts += _side(length_BM, start_BM, query_groups, spec, block=tile.block_m, own_is_query=True)
    parts += _per_row(layout, spec, length_BM)
    flat = np.concatenate([part.reshape(-1) for part in parts]).astype(np.int32)
    on_device = torch.from_numpy(flat).to(layout.device, non_blocking=True)
    pieces = [
        piece.view(part.shape) for piece, part in zip(on_device.split([p.size for p in parts]), parts, strict=True)
    ]
    sides = [Side(*pieces[i : i + 3]) for i in (0, 3, 6)]
    return Tables({"fwd": sides[0], "bwd_dq": sides[1]}, sides[2], pieces[9], pieces[10], size)


def _lengths(layout: PackedLayout) -> np.ndarray:
    return np.array(layout.lengths, dtype=np.int64).reshape(layout.num_products, layout.num_modalities)


def _groups(others: list[tuple[int, ...]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(own modalities, modalities on the other side), own modalities grouped by equal others."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for m, other in enumerate(others):
        groups.setdefault(other, []).append(m)
    return [(tuple(own), other) for other, own in groups.items()]


def _side(
    length_BM: np.ndarray,
    start_BM: np.ndarray,
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]],
    spec: AttentionSpec,
    *,
    block: int,
    own_is_query: bool,
) -> list[np.ndarray]:
    """Own rows, other rows and tiles of all groups, longest work first."""
    own_align, other_align = (1, ALIGNMENT) if own_is_query else (ALIGNMENT, 1)
    own_lists, other_lists, tiles = [], [], []
    own_base = other_base = 0
    for own, other in groups:
        own_rows, own_bounds = _row_list(length_BM[:, own], start_BM[:, own], own_align)
        other_rows, other_bounds = _row_list(length_BM[:, other], start_BM[:, other], other_align)
        cut = _cut(own_bounds, other_bounds, block)
        if own == other and len(own) == 1 and spec.is_causal(own[0]):
            _skip_invisible(cut, own_bounds, other_bounds, own_is_query)
        cut[:, 0:2] += own_base
        cut[:, 2:4] += other_base
        own_base += own_rows.size
        other_base += other_rows.size
        own_lists.append(own_rows)
        other_lists.append(other_rows)
        tiles.append(cut)
    tiles_N5 = np.concatenate(tiles)
    by_work = np.argsort(tiles_N5[:, 2] - tiles_N5[:, 3], kind="stable")
    return [np.concatenate(own_lists), np.concatenate(other_lists), tiles_N5[by_work]]


def _row_list(length_BG: np.ndarray, start_BG: np.ndarray, align: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the segments of each product one after another, each padded to `align` with -1; and [B + 1] bounds."""
    padded_BG = -(-length_BG // align) * align
    begin = np.cumsum(padded_BG) - padded_BG.reshape(-1)
    segment = np.repeat(np.arange(padded_BG.size), padded_BG.reshape(-1))
    position = np.arange(segment.size) - begin[segment]
    rows = np.where(position < length_BG.reshape(-1)[segment], start_BG.reshape(-1)[segment] + position, -1)
    return rows, np.concatenate([[0], np.cumsum(padded_BG.sum(1))])


def _cut(own_bounds: np.ndarray, other_bounds: np.ndarray, block: int) -> np.ndarray:
    """int64 [N, 5]: each product's own list cut into tiles of `block`, each with the whole other list."""
    num_tiles_B = -(-np.diff(own_bounds) // block)
    product = np.repeat(np.arange(num_tiles_B.size), num_tiles_B)
    number = np.arange(product.size) - (np.cumsum(num_tiles_B) - num_tiles_B)[product]
    begin = own_bounds[product] + number * block
    end = np.minimum(begin + block, own_bounds[product + 1])
    return np.stack([begin, end, other_bounds[product], other_bounds[product + 1], product], 1)


def _skip_invisible(cut: np.ndarray, own_bounds: np.ndarray, other_bounds: np.ndarray, own_is_query: bool) -> None:
    """A causal modality that sees only itself: query tiles end at their last row, key tiles begin at their first."""
    product = cut[:, 4]
    if own_is_query:
        cut[:, 3] = np.minimum(cut[:, 3], other_bounds[product] + cut[:, 1] - own_bounds[product])
    else:
        cut[:, 2] = np.minimum(cut[:, 3], other_bounds[product] + cut[:, 0] - own_bounds[product])


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
