"""Counter-based random numbers, keyed by what they belong to and never by where they are computed.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The counter and key are built
from the identity of the thing that is drawn for, so that world size, micro-batch size and packing order change nothing:

    key     = (seed, draw)               seed: the run's; draw: the product's epoch or mixture draw
    counter = (element, stream << 24 | modality << 16 | index, product & 0xFFFFFFFF, product >> 32)

`element` is a row, unit or position inside the product, `index` a layer or head number (16 bits), `product` the 64-bit
stable hash of the product's id (`product_hash`). The Triton kernels draw the same bits.

Unsigned 32-bit words travel in int64 tensors, since torch lacks full uint32 arithmetic.
"""

import hashlib
from enum import IntEnum

import torch
from torch import Tensor

_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_WEYL_A, _WEYL_B = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF

EVALUATION_DRAW = 0xFFFFFFFF
"""The draw of every evaluation: masks of a validation pass are the same each time."""


class Stream(IntEnum):
    """One number per purpose, so that no two purposes share random bits. Append only: the numbers are part of a run."""

    MASK = 0
    REPLACEMENT = 1
    ATTENTION_DROPOUT = 2
    HIDDEN_DROPOUT = 3
    MODALITY_DROPOUT = 4
    CROP = 5
    FRAMES = 6
    AUDIO_WINDOW = 7
    MEDIA_CHOICE = 8
    TABLE_ORDER = 9
    ORDER = 10
    BOOTSTRAP = 11
    LABEL_SHARE = 12


def product_hash(product_id: str) -> int:
    """The stable 64-bit hash of a product's id as a signed int64 (blake2b, 8 bytes, little endian)."""
    return int.from_bytes(hashlib.blake2b(product_id.encode(), digest_size=8).digest(), "little", signed=True)


def threshold(probability: float) -> int:
    """The integer t such that a 32-bit word w is drawn iff w < t. 0.0 never draws, 1.0 always does."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    return round(probability * 2**32)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32-bit words of the product of two unsigned 32-bit words, without overflowing int64."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32. Counter and key words are int64 tensors in [0, 2**32) that broadcast together.

    Returns four int64 tensors of values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high_a, low_a = _multiply(_ROUND_A, c0)
        high_b, low_b = _multiply(_ROUND_B, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + _WEYL_A) & _WORD, (k1 + _WEYL_B) & _WORD
    return torch.broadcast_tensors(c0, c1, c2, c3)


def random_words(
    *,
    seed: int,
    draw: Tensor | int,
    product: Tensor,
    stream: Stream,
    modality: Tensor | int = 0,
    element: Tensor | int = 0,
    index: Tensor | int = 0,
) -> tuple[Tensor, ...]:
    """Four independent 32-bit words (int64 tensors) for every element; all arguments broadcast together.

    `product` int64 (signed hash), `draw` and `element` in [0, 2**32), `modality` in [0, 256), `index` in [0, 65536).
    """

    def word(value: Tensor | int) -> Tensor:
        return torch.as_tensor(value, dtype=torch.int64, device=product.device)

    purpose = (int(stream) << 24) | (word(modality) << 16) | word(index)
    counter = (word(element) & _WORD, purpose, product & _WORD, (product >> 32) & _WORD)
    return philox4x32(counter, (word(seed) & _WORD, word(draw) & _WORD))


def uniform(words: Tensor) -> Tensor:
    """float64 in [0, 1) from 32-bit words: exact, so that every device computes the same crop or frame from it."""
    return words.to(torch.float64) / 2.0**32
