"""hidden_dropout's kernel as a torch operator whose backward is the same kernel on the gradient."""

from typing import Any

import torch
import triton
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.philox import threshold
from m5ds.kernels.hidden_dropout.tiles import CALLS, DTYPES, NUM_WARPS, ROWS
from m5ds.kernels.hidden_dropout.triton_kernels import hidden_dropout_kernel

LAUNCHED: set[str] = set()
"""Dtypes of every launch of this process, for tests."""


def hidden_dropout_triton(
    x_ND: Tensor, layout: PackedLayout, first_row: int, probability: float, seed: int, index: int
) -> Tensor:
    """See `m5ds.kernels.hidden_dropout.hidden_dropout`. `ValueError` for float64."""
    if x_ND.dtype not in DTYPES:
        raise ValueError(f"x_ND is {x_ND.dtype}; the Triton path takes float16, bfloat16 and float32")
    return drop(
        x_ND,
        layout.row_product_T,
        layout.row_modality_T,
        layout.row_position_T,
        layout.product_B,
        layout.draw_B,
        first_row,
        probability,
        seed & 0xFFFFFFFF,
        index,
    )


@torch.library.custom_op("m5ds::hidden_dropout", mutates_args=())
def drop(
    x_ND: Tensor,
    row_product_T: Tensor,
    row_modality_T: Tensor,
    row_position_T: Tensor,
    product_B: Tensor,
    draw_B: Tensor,
    first_row: int,
    probability: float,
    seed: int,
    index: int,
) -> Tensor:
    """x with dropped features."""
    x_ND = x_ND.contiguous()
    out_ND = torch.empty_like(x_ND)
    num_rows, width = x_ND.shape
    num_calls = triton.cdiv(width, 4)
    if num_rows and width:
        LAUNCHED.add(DTYPES[x_ND.dtype])
        hidden_dropout_kernel[(triton.cdiv(num_rows, ROWS), triton.cdiv(num_calls, CALLS))](
            x_ND,
            out_ND,
            row_product_T,
            row_modality_T,
            row_position_T,
            product_B,
            draw_B,
            first_row,
            num_rows,
            width,
            num_calls,
            seed,
            index,
            threshold(probability),
            1.0 / (1.0 - probability),
            ROWS=ROWS,
            CALLS=CALLS,
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    return out_ND


@drop.register_fake
def _(
    x_ND: Tensor,
    row_product_T: Tensor,
    row_modality_T: Tensor,
    row_position_T: Tensor,
    product_B: Tensor,
    draw_B: Tensor,
    first_row: int,
    probability: float,
    seed: int,
    index: int,
) -> Tensor:
    return torch.empty_like(x_ND, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:6])
    ctx.scalars = inputs[6:]


def _backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
    return (drop(grad_ND, *ctx.saved_tensors, *ctx.scalars), *(None,) * 9)


drop.register_autograd(_backward, setup_context=_setup_context)
