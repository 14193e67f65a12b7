"""embed_modalities as a handful of torch ops per modality: the CPU path.

A modality's content rows are normalised together; its [CLS] rows are one vector, the same for every product. Both are
copied once, into their rows of the packed buffer. Sums and LayerNorm run in float32 (or float64).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities.inputs import EmbedInput
from m5ds.kernels.embed_modalities.masking import draw_mask, replace_tokens


@dataclass
class _Rows:
    """Where a modality's rows go in the packed buffer."""

    content_N: Tensor
    cls_S: Tensor | None
    """The first row of each segment where the modality has [CLS] rows."""


class _PackRows(torch.autograd.Function):
    """Copies content rows [N, D] and [CLS] vectors [1, D] of all modalities into one buffer [T, D] of `dtype`.

    Its backward gathers, in float32; index_select's own would scatter into zeros.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, num_rows: int, rows: list[_Rows], *blocks: Tensor) -> Tensor:
        x_TD = blocks[0].new_empty(num_rows, blocks[0].shape[1], dtype=dtype)
        left = iter(blocks)
        for item in rows:
            x_TD.index_copy_(0, item.content_N, next(left).to(dtype))
            if item.cls_S is not None:
                x_TD.index_copy_(0, item.cls_S, next(left).to(dtype).expand(len(item.cls_S), -1))
        ctx.rows, ctx.dtype = rows, blocks[0].dtype
        return x_TD

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None, None, None]
        for item in ctx.rows:
            grads.append(grad_TD.index_select(0, item.content_N).to(ctx.dtype))
            if item.cls_S is not None:
                grads.append(grad_TD.index_select(0, item.cls_S).to(ctx.dtype).sum(0, keepdim=True))
        return tuple(grads)


def embed_modalities_torch(
    inputs: list[EmbedInput], layout: PackedLayout, *, seed: int, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """See `m5ds.kernels.embed_modalities.embed_modalities`."""
    blocks, rows, masks = [], [], []
    for number, item in enumerate(inputs):
        row_R = torch.arange(layout.slab[number], layout.slab[number + 1], device=layout.device)
        cls_S = None
        if item.cls_D is not None:
            is_cls_R = layout.row_position_T[row_R] == 0
            cls_S, row_R = row_R[is_cls_R], row_R[~is_cls_R]
        product_N = layout.row_product_T[row_R]
        offset_N = layout.row_position_T[row_R] - int(item.cls_D is not None)
        content_ND, masked_N = _content(item, layout.product_B[product_N], layout.draw_B[product_N], offset_N, seed)
        blocks.append(_normalise(content_ND, item, eps))
        if item.cls_D is not None:
            blocks.append(_normalise((_wide(item.cls_D) + _wide(item.modality_D))[None], item, eps))
        rows.append(_Rows(row_R, cls_S))
        masks.append(masked_N)
    x_TD: Tensor = _PackRows.apply(inputs[0].modality_D.dtype, layout.num_rows, rows, *blocks)
    return x_TD, masks


def _wide(value: Tensor) -> Tensor:
    """At least float32, taken before a lookup and not after it, so that the gradient's sum over rows is float32 too."""
    return value if value.dtype == torch.float64 else value.float()


def _normalise(content_ND: Tensor, item: EmbedInput, eps: float) -> Tensor:
    weight_D, bias_D = _wide(item.norm_weight_D), _wide(item.norm_bias_D)
    return F.layer_norm(content_ND, weight_D.shape, weight_D, bias_D, eps)


def _content(item: EmbedInput, product_N: Tensor, draw_N: Tensor, row_N: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Content rows before LayerNorm, and their mask."""
    masked_N = draw_mask(item.unit_N, item.part_N, product_N, draw_N, item.modality, seed, item.mask)
    if item.token_N is None:
        assert item.projected_ND is not None
        x_ND = _wide(item.projected_ND)
        if item.mask_D is not None:
            x_ND = torch.where(masked_N[:, None], _wide(item.mask_D), x_ND)
    else:
        assert item.token_table_VD is not None
        token_N = replace_tokens(item.token_N, masked_N, row_N, product_N, draw_N, item.modality, seed, item.mask)
        x_ND = F.embedding(token_N, _wide(item.token_table_VD))
    x_ND = x_ND + F.embedding(item.position_N, _wide(item.position_table_PD))
    if item.part_table_2D is None:
        x_ND = x_ND + _wide(item.modality_D)
    else:
        x_ND = x_ND + F.embedding(item.part_N, _wide(item.part_table_2D) + _wide(item.modality_D))
    if item.extra_ND is not None:
        x_ND = x_ND + _wide(item.extra_ND)
    return x_ND, masked_N
