"""What the attention kernels move and compute, in closed form from lengths: for rooflines, and checked by traffic.py.

Masked lanes move nothing, padded tiles do compute. Letters: B products, M modalities.
"""

from dataclasses import dataclass

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.tiles import attention_tile, padded_head_dim
from m5ds.kernels.cross_modal_attention.dropout import aligned
from m5ds.kernels.cross_modal_attention.planning.tables import TILE_WORDS
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec


@dataclass(frozen=True)
class Cost:
    """One kernel launch."""

    tensor_bytes: int
    """q, k, v, out, gradients, log-sum-exp and delta, read and written by all programs; re-reads count."""
    table_bytes: int
    """Tiles, row lists, causal codes (dropout's lists not counted)."""
    minimum_bytes: int
    """Each tensor read or written once: what DRAM must move when every re-read hits a cache."""
    flops: int
    """Two per multiply-add of the dots, padding included."""
    useful_flops: int
    """The same over visible pairs of rows only (causal skipping not counted)."""


_DOTS = {"fwd": 2, "bwd_dq": 3, "bwd_dkdv": 4}


def attention_cost(
    kernel: str,
    layout: PackedLayout,
    spec: AttentionSpec,
    *,
    heads: int,
    head_dim: int,
    itemsize: int,
    arch: str,
    size: str,
) -> Cost:
    """Cost of `kernel` (tiles.ATTENTION_KERNELS) without dropout, without causal skipping."""
    tile = attention_tile(kernel, arch, head_dim, itemsize, size)
    own_is_query = kernel != "bwd_dkdv"
    block, step = (tile.block_m, tile.block_n) if own_is_query else (tile.block_n, tile.block_m)
    row = head_dim * itemsize
    pairs = padded_pairs = num_tiles = streamed = list_bytes = 0
    seen_of: dict[tuple[int, ...], list[int]] = {}
    for m in range(spec.num_modalities):
        seen_of.setdefault(spec.keys_of(m) if own_is_query else spec.queries_of(m), []).append(m)
    for other, own in seen_of.items():
        for lengths in layout.lengths:
            own_rows, other_rows = sum(lengths[m] for m in own), sum(lengths[m] for m in other)
            own_list = own_rows if own_is_query else sum(aligned(lengths[m]) for m in own)
            other_list = other_rows if not own_is_query else sum(aligned(lengths[m]) for m in other)
            tiles = -(-own_list // block)
            steps = -(-other_list // step)
            num_tiles += tiles
            pairs += own_rows * other_rows
            padded_pairs += tiles * block * steps * step
            streamed += tiles * other_rows
            # a tile's words, own list and codes once, the other list and its codes once a tile
            list_bytes += 4 * (tiles * TILE_WORDS + own_list + own_rows + tiles * (other_list + other_rows))
    rows = layout.num_rows
    own_bytes, streamed_bytes = {
        "fwd": (2 * row + 4, 2 * row),
        "bwd_dq": (4 * row + 8, 2 * row),
        "bwd_dkdv": (4 * row, 2 * row + 8),
    }[kernel]
    minimum = {"fwd": 4 * row + 4, "bwd_dq": 6 * row + 8, "bwd_dkdv": 6 * row + 8}[kernel]
    return Cost(
        tensor_bytes=heads * (rows * own_bytes + streamed * streamed_bytes),
        table_bytes=heads * list_bytes,
        minimum_bytes=heads * rows * minimum,
        flops=heads * padded_pairs * padded_head_dim(head_dim) * 2 * _DOTS[kernel],
        useful_flops=heads * pairs * head_dim * 2 * _DOTS[kernel],
    )
