"""embed_modalities as a handful of torch ops per modality: the CPU path.

Rows of all modalities are normalised as they come, and one index_select moves them into packed order together with the
[CLS] rows, which are the same vector for every product of a modality. Sums and LayerNorm run in float32 (or float64).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from m5ds.kernels.embed_modalities.inputs import EmbedInput
from m5ds.kernels.embed_modalities.masking import draw_mask, replace_tokens
from m5ds.kernels.layout import PackedLayout


def embed_modalities_torch(
    inputs: list[EmbedInput], layout: PackedLayout, *, seed: int, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """See `m5ds.kernels.embed_modalities.embed_modalities`."""
    blocks, sources, masks = [], [], []
    num_rows = 0
    for number, item in enumerate(inputs):
        slab = slice(layout.slab[number], layout.slab[number + 1])
        product_R, position_R = layout.row_product_T[slab], layout.row_position_T[slab]
        source_R = torch.arange(num_rows, num_rows + item.num_rows, device=layout.device)
        if item.cls_D is not None:
            # Content rows count up, and each [CLS] row points at the one normalised [CLS] vector behind them.
            content_R = position_R > 0
            product_R, position_R = product_R[content_R], position_R[content_R] - 1
            cls_row = num_rows + item.num_rows
            source_R = torch.full_like(content_R, cls_row, dtype=torch.int64).masked_scatter_(content_R, source_R)
        content_ND, masked_N = _content(item, layout.product_B[product_R], layout.draw_B[product_R], position_R, seed)
        blocks.append(_normalise(content_ND, item, eps))
        num_rows += item.num_rows
        if item.cls_D is not None:
            blocks.append(_normalise(_wide(item.cls_D + item.modality_D)[None], item, eps))
            num_rows += 1
        sources.append(source_R)
        masks.append(masked_N)
    x_RD = torch.cat(blocks)
    if any(item.cls_D is not None for item in inputs):
        x_RD = x_RD.index_select(0, torch.cat(sources))
    return x_RD.to(inputs[0].modality_D.dtype), masks


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
