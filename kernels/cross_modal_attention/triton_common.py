"""What the attention kernels share: causal visibility and dropout of a tile, recomputed wherever they are needed.

Kernel prefixes: p_ pointer, b_ block of values, o_ offsets, m_ mask, i_ program or loop index.
"""

import triton
import triton.language as tl

from m5ds.kernels.common.philox import Stream
from m5ds.kernels.common.philox_triton import interleaved, random_words
from m5ds.kernels.cross_modal_attention.planning.tables import POSITION_BITS, TILE_WORDS

_SAME_MODALITY = tl.constexpr(1 << POSITION_BITS)
_TILE_WORDS = tl.constexpr(TILE_WORDS)
_STREAM = tl.constexpr(int(Stream.ATTENTION_DROPOUT))


@triton.jit
def read_tile(p_tiles, i_tile):
    """The fields of tables.py's `Tile`, in their order."""
    p_tile = p_tiles + i_tile.to(tl.int64) * _TILE_WORDS
    own_begin, own_end = tl.load(p_tile), tl.load(p_tile + 1)
    other_begin, other_end = tl.load(p_tile + 2), tl.load(p_tile + 3)
    return own_begin, own_end, other_begin, other_end, tl.load(p_tile + 4)


@triton.jit
def is_seen(b_query_code, b_key_code):
    """False where a key lies in the query's own causal segment after it (tables.py's codes; broadcast together)."""
    return (b_key_code <= b_query_code) | ((b_key_code ^ b_query_code) >= _SAME_MODALITY)


@triton.jit
def kept_weights(b_query_offset, b_call, b_product, b_draw, i_head, seed, layer, threshold):
    """bool [M, C, 4]: True = kept, for query offsets [M] and key offsets 4 * b_call + 0..3, b_call [C] (dropout.py)."""
    b_element = (b_query_offset[:, None] << 16) | b_call[None, :]
    b_w0, b_w1, b_w2, b_w3 = random_words(b_element, b_product, b_draw, seed, _STREAM, i_head, layer)
    b_words = tl.reshape(interleaved(b_w0, b_w1, b_w2, b_w3), (b_query_offset.shape[0], b_call.shape[0], 4))
    return b_words.to(tl.int64) >= threshold
