"""Which attention weights dropout drops: a pure function of product, draw, head, layer and the two rows.

Offsets: the rows of a product are counted in modality order, each segment starting at a multiple of 4 (so that the four
words of one Philox call serve four neighbouring keys wherever a tile starts). The weight of (query offset q, key offset
k) of head h in layer l is decided by word k % 4 of

    random_words(stream=ATTENTION_DROPOUT, modality=h, index=l, element=q << 16 | k // 4)

and dropped iff that word is less than `philox.threshold(p)`; kept weights are multiplied by 1 / (1 - p).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.philox import Stream, random_words, threshold

ALIGNMENT = 4
MAX_OFFSET = 1 << 16
MAX_HEADS = 256


@dataclass(frozen=True)
class Dropout:
    """Probability in [0, 1), the run's seed and the layer number in [0, 65536)."""

    probability: float
    seed: int
    layer: int

    @property
    def scale(self) -> float:
        return 1.0 / (1.0 - self.probability)

    def validate(self, layout: PackedLayout, num_heads: int) -> None:
        """`ValueError` naming the argument that the random counter cannot hold."""
        if not 0.0 <= self.probability < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.probability}")
        if not 0 <= self.layer < 1 << 16:
            raise ValueError(f"layer must lie in [0, 65536), got {self.layer}")
        if self.probability == 0.0:
            return
        if num_heads > MAX_HEADS:
            raise ValueError(f"dropout supports at most {MAX_HEADS} heads, q_THD has {num_heads}")
        longest = max((sum(map(aligned, row)) for row in layout.lengths), default=0)
        if longest > MAX_OFFSET:
            raise ValueError(f"dropout supports at most {MAX_OFFSET} rows a product, layout has one of {longest}")


def aligned(length: int) -> int:
    """The length rounded up to a multiple of ALIGNMENT."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def segment_offsets(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Offset of the first row of each of a product's M segments."""
    offsets, offset = [], 0
    for length in lengths:
        offsets.append(offset)
        offset += aligned(length)
    return tuple(offsets)


def keep_mask(
    dropout: Dropout, product_P: Tensor, draw_P: Tensor, num_heads: int, query_PQ: Tensor, key_PK: Tensor
) -> Tensor:
    """bool [P, H, Q, K], True = kept, for P products with the given int64 query and key offsets."""
    if key_PK.numel() == 0:
        return torch.ones(*query_PQ.shape[:1], num_heads, query_PQ.shape[1], key_PK.shape[1], dtype=torch.bool)
    first_P1 = key_PK.amin(1, keepdim=True) // ALIGNMENT
    num_calls = int((key_PK.amax(1, keepdim=True) // ALIGNMENT - first_P1).max()) + 1
    call_PC = first_P1 + torch.arange(num_calls, device=key_PK.device)
    words = random_words(
        seed=dropout.seed,
        draw=draw_P[:, None, None, None],
        product=product_P[:, None, None, None],
        stream=Stream.ATTENTION_DROPOUT,
        modality=torch.arange(num_heads, device=key_PK.device)[None, :, None, None],
        index=dropout.layer,
        element=(query_PQ[:, None, :, None] << 16) | call_PC[:, None, None, :],
    )
    limit = threshold(dropout.probability)
    kept_PHQC4 = torch.stack([word >= limit for word in words], -1)
    column_PK = key_PK - first_P1 * ALIGNMENT
    column_PHQK = column_PK[:, None, None, :].expand(-1, num_heads, query_PQ.shape[1], -1)
    return kept_PHQC4.flatten(-2).gather(-1, column_PHQK)
