"""hidden_dropout by definition, which is also the CPU path: it draws in chunks, so that memory stays bounded.

Feature d of a segment's row r is decided by word d % 4 of

    random_words(stream=HIDDEN_DROPOUT, modality=m, index=index, element=r * ceil(D / 4) + d // 4)

and dropped iff that word is less than `philox.threshold(p)`. Letters: N rows, D width.
"""

import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.philox import Stream, random_words, threshold

WORDS = 4
_CHUNK_ELEMENTS = 1 << 20
"""Features drawn at a time: Philox in torch holds about 20 int64 temporaries of a quarter of this size."""


def keep_mask(
    layout: PackedLayout, first_row: int, num_rows: int, width: int, probability: float, seed: int, index: int
) -> Tensor:
    """bool [N, D] on the layout's device: True = kept."""
    rows = slice(first_row, first_row + num_rows)
    product_N, modality_N = layout.row_product_T[rows], layout.row_modality_T[rows]
    position_N = layout.row_position_T[rows]
    num_calls = -(-width // WORDS)
    call_C = torch.arange(num_calls, device=layout.device)
    limit = threshold(probability)
    step = max(1, _CHUNK_ELEMENTS // (num_calls * WORDS))
    kept = []
    for start in range(0, num_rows, step):
        chunk = slice(start, start + step)
        words = random_words(
            seed=seed,
            draw=layout.draw_B[product_N[chunk], None],
            product=layout.product_B[product_N[chunk], None],
            stream=Stream.HIDDEN_DROPOUT,
            modality=modality_N[chunk, None],
            element=position_N[chunk, None] * num_calls + call_C,
            index=index,
        )
        kept.append(torch.stack([word >= limit for word in words], -1).flatten(1)[:, :width])
    return torch.cat(kept) if kept else torch.ones(0, width, dtype=torch.bool, device=layout.device)


def hidden_dropout_reference(
    x_ND: Tensor, layout: PackedLayout, first_row: int, probability: float, seed: int, index: int
) -> Tensor:
    """See `m5ds.kernels.hidden_dropout.hidden_dropout`."""
    kept_ND = keep_mask(layout, first_row, x_ND.shape[0], x_ND.shape[1], probability, seed, index)
    return torch.where(kept_ND, x_ND * (1.0 / (1.0 - probability)), x_ND.new_zeros(()))
