"""Dropout of packed rows whose bits belong to (product, draw, modality, row of the segment, feature), never to the
packing.

Shape letters: N consecutive packed rows, D width, T all packed rows.
"""

from torch import Tensor

from m5ds.kernels.common.dispatch import choose_path
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.layout_validation import validate_layout
from m5ds.kernels.hidden_dropout.reference import hidden_dropout_reference, keep_mask

__all__ = ["hidden_dropout", "keep_mask"]


def hidden_dropout(
    x_ND: Tensor,
    layout: PackedLayout,
    first_row: int,
    *,
    probability: float,
    seed: int,
    index: int,
    path: str | None = None,
) -> Tensor:
    """x with each feature dropped with `probability` and the kept ones scaled by 1 / (1 - probability).

    `x_ND` holds the layout's rows first_row : first_row + N. `index` in [0, 65536) tells layers and sites apart,
    `seed` is the run's. probability 0 returns x itself. Gradients flow to x; the bits are drawn again in the
    backward, not kept. ValueError names a bad argument.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {probability}")
    if not 0 <= index < 1 << 16:
        raise ValueError(f"index must lie in [0, 65536), got {index}")
    if x_ND.dim() != 2 or first_row < 0 or first_row + x_ND.shape[0] > layout.num_rows:
        raise ValueError(
            f"x_ND {list(x_ND.shape)} from row {first_row} does not lie in a layout of {layout.num_rows} rows"
        )
    if not x_ND.is_floating_point():
        raise ValueError(f"x_ND must be floating point, got {x_ND.dtype}")
    if x_ND.device != layout.device:
        raise ValueError(f"x_ND is on {x_ND.device}, layout on {layout.device}: use layout.to(device)")
    validate_layout(layout)
    if probability == 0.0:
        return x_ND
    if choose_path("hidden_dropout", x_ND.device, path) == "triton":
        from m5ds.kernels.hidden_dropout.triton_path import hidden_dropout_triton

        return hidden_dropout_triton(x_ND, layout, first_row, probability, seed, index)
    return hidden_dropout_reference(x_ND, layout, first_row, probability, seed, index)
