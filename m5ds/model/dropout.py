"""Where hidden dropout sits in a model, as the number that keys its bits (kernels/hidden_dropout)."""

from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.hidden_dropout import hidden_dropout

_SITES = 4
EMBEDDING, ATTENTION, FEED_FORWARD = range(3)
"""Sites of a layer; the embedding is layer 0's first, blocks count from layer 0 too and use the other two."""


def drop_rows(
    x_ND: Tensor, layout: PackedLayout, first_row: int, probability: float, seed: int, layer: int, site: int
) -> Tensor:
    """x [N, D], the layout's rows from `first_row` on, under dropout. `layer` < 16384, `site` one of the above."""
    if probability == 0.0:
        return x_ND
    index = layer * _SITES + site
    return hidden_dropout(x_ND, layout, first_row, probability=probability, seed=seed, index=index)
