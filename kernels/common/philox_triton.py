"""Philox in Triton: the words that kernels/common/philox.py's `random_words` draws, for any kernel that needs them.

Prefixes: b_ block of values.
"""

import triton
import triton.language as tl
from triton.language.random import philox_impl

_STREAM = tl.constexpr(1 << 24)
_MODALITY = tl.constexpr(1 << 16)


@triton.jit
def random_words(b_element, b_product, b_draw, seed, stream: tl.constexpr, modality, index):
    """Four blocks of 32-bit words, uint32, in the shape of `b_element`, to which everything else broadcasts.

    Where bits are drawn per head rather than per modality, the head stands in the modality's place.
    """
    # Each word is made in its own shape, so that only 32-bit words are broadcast: 64-bit ones would double registers.
    b_zero = (b_element * 0).to(tl.uint32)
    return philox_impl(
        b_element.to(tl.uint32),
        b_zero + tl.cast(modality * _MODALITY + stream * _STREAM + index, tl.uint32),
        b_zero + (b_product & 0xFFFFFFFF).to(tl.uint32),
        b_zero + ((b_product >> 32) & 0xFFFFFFFF).to(tl.uint32),
        b_zero + tl.cast(seed, tl.uint32),
        b_zero + (b_draw & 0xFFFFFFFF).to(tl.uint32),
    )


@triton.jit
def interleaved(b_w0, b_w1, b_w2, b_w3):
    """[..., 4] from four blocks: word 0 to 3 of each call side by side."""
    # join puts a new last axis, so that [..., 2, 2] reads w0 w1 w2 w3 after a reshape
    return tl.join(tl.join(b_w0, b_w2), tl.join(b_w1, b_w3))
