"""Which rows are masked and what stands in their place: the bits that the reference, the torch path and Triton share.

Shape letters: N content rows of one modality in the batch. Randomness: common/philox.py, keyed by the product's hash,
its draw, the modality and the masking unit, so that packing, ranks and micro-batches change nothing (DESIGN section 0).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from m5ds.kernels.common import philox

MASK_BELOW = philox.threshold(0.8)
"""Text: a masked token becomes the mask token where its replacement word lies below this (80 %) ..."""
RANDOM_BELOW = philox.threshold(0.9)
"""... a random token below this (10 %), and stays as it is otherwise (10 %; BERT, PAPER.md section 1.3)."""


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """How one modality is masked."""

    threshold: int
    """A unit is masked iff its 32-bit word lies below (philox.threshold of the mask ratio)."""
    unit: Literal["unit", "key_or_value"] = "unit"
    """`unit`: all rows of a unit together. `key_or_value`: the unit is a table pair; its key or its value is masked."""
    text: bool = False
    """True: 80/10/10 replacement row by row. False: every masked token becomes the mask token."""
    mask_token: int = 0
    vocab_size: int = 0
    """Text: random tokens are drawn uniformly from [first_random_token, vocab_size)."""
    first_random_token: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 2**32:
            raise ValueError(f"mask.threshold must lie in [0, 2**32], got {self.threshold}")
        if self.unit not in ("unit", "key_or_value"):
            raise ValueError(f"mask.unit must be 'unit' or 'key_or_value', got {self.unit!r}")
        if self.text and not 0 <= self.first_random_token < self.vocab_size:
            raise ValueError(
                f"mask.first_random_token must lie below vocab_size {self.vocab_size}, got {self.first_random_token}"
            )


def draw_mask(
    unit_N: Tensor, part_N: Tensor, product_N: Tensor, draw_N: Tensor, modality: int, seed: int, spec: MaskSpec | None
) -> Tensor:
    """bool [N]: True = the row is masked, that is, a target of the modality's masked objective.

    `unit_N` int64 masking unit inside the product (-1 = never masked), `part_N` int64 (0 key, 1 value), `product_N`
    int64 hash and `draw_N` int64 of each row's product, `modality` its number in the table. No spec masks nothing.
    """
    if spec is None or spec.threshold == 0 or unit_N.numel() == 0:
        return torch.zeros_like(unit_N, dtype=torch.bool)
    words = philox.random_words(
        seed=seed, draw=draw_N, product=product_N, stream=philox.Stream.MASK, modality=modality, element=unit_N
    )
    masked_N = (unit_N >= 0) & (words[0] < spec.threshold)
    if spec.unit == "key_or_value":
        masked_N &= part_N == (words[1] & 1)
    return masked_N


def replace_tokens(
    token_N: Tensor,
    masked_N: Tensor,
    row_N: Tensor,
    product_N: Tensor,
    draw_N: Tensor,
    modality: int,
    seed: int,
    spec: MaskSpec | None,
) -> Tensor:
    """int64 [N]: the token ids that the model sees. `row_N` is each row's index among its segment's content rows."""
    if spec is None or token_N.numel() == 0:
        return token_N
    if not spec.text:
        return torch.where(masked_N, spec.mask_token, token_N)
    words = philox.random_words(
        seed=seed, draw=draw_N, product=product_N, stream=philox.Stream.REPLACEMENT, modality=modality, element=row_N
    )
    random_N = spec.first_random_token + words[1] % (spec.vocab_size - spec.first_random_token)
    replaced_N = torch.where(words[0] < RANDOM_BELOW, random_N, token_N)
    replaced_N = torch.where(words[0] < MASK_BELOW, spec.mask_token, replaced_N)
    return torch.where(masked_N, replaced_N, token_N)
