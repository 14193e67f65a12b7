"""Hidden dropout whose bits belong to (product, draw, modality, row of the segment, feature), never to the packing.

T packed rows, D features. One Philox call serves four neighbouring features.
"""

import torch
from torch import Tensor

from m5ds.kernels import philox
from m5ds.kernels.layout import PackedLayout

_SITES = 4
_WORDS = 4
_CHUNK_ELEMENTS = 1 << 22
"""Elements drawn at a time: Philox in torch needs about 20 int64 temporaries of a quarter of this size."""

EMBEDDING, ATTENTION, FEED_FORWARD = range(3)
"""Sites of a layer; the embedding is layer 0's first, blocks count from layer 0 too and use the other two."""


def keep_mask(
    layout: PackedLayout, rows: slice, num_features: int, probability: float, seed: int, index: int
) -> Tensor:
    """bool [rows, D] on the layout's device: True = kept, with probability 1 - p."""
    quarters = -(-num_features // _WORDS)
    limit = philox.threshold(probability)
    product_T, modality_T = layout.row_product_T[rows], layout.row_modality_T[rows]
    position_T = layout.row_position_T[rows]
    column_Q = torch.arange(quarters, device=layout.device)
    step = max(1, _CHUNK_ELEMENTS // (quarters * _WORDS))
    kept = []
    for start in range(0, product_T.shape[0], step):
        chunk = slice(start, start + step)
        words = philox.random_words(
            seed=seed,
            draw=layout.draw_B[product_T[chunk], None],
            product=layout.product_B[product_T[chunk], None],
            stream=philox.Stream.HIDDEN_DROPOUT,
            modality=modality_T[chunk, None],
            element=position_T[chunk, None] * quarters + column_Q,
            index=index,
        )
        kept.append(torch.stack([word >= limit for word in words], -1).flatten(1)[:, :num_features])
    return torch.cat(kept) if kept else torch.ones(0, num_features, dtype=torch.bool, device=layout.device)


def hidden_dropout(
    x_TD: Tensor, layout: PackedLayout, rows: slice, probability: float, seed: int, layer: int, site: int
) -> Tensor:
    """x with features dropped and the kept ones scaled by 1 / (1 - p). `x_TD` holds the layout's rows `rows`.

    `layer` in [0, 16384), `site` one of EMBEDDING, ATTENTION, FEED_FORWARD. p = 0 returns x itself.
    """
    if probability == 0.0:
        return x_TD
    if probability == 1.0:
        return x_TD * 0.0
    kept_TD = keep_mask(layout, rows, x_TD.shape[1], probability, seed, layer * _SITES + site)
    return torch.where(kept_TD, x_TD * (1.0 / (1.0 - probability)), x_TD.new_zeros(()))
