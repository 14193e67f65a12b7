"""embed_modalities by definition: product by product, row by row, in the inputs' own precision (float64 in tests)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities.inputs import EmbedInput
from m5ds.kernels.embed_modalities.masking import draw_mask, replace_tokens


def embed_modalities_reference(
    inputs: list[EmbedInput], layout: PackedLayout, *, seed: int, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """See `m5ds.kernels.embed_modalities.embed_modalities`."""
    slabs, masks = zip(*(_slab(item, number, layout, seed, eps) for number, item in enumerate(inputs)), strict=True)
    return torch.cat(slabs), list(masks)


def _slab(item: EmbedInput, number: int, layout: PackedLayout, seed: int, eps: float) -> tuple[Tensor, Tensor]:
    def normalise(row_D: Tensor) -> Tensor:
        return F.layer_norm(row_D, row_D.shape, item.norm_weight_D, item.norm_bias_D, eps)

    rows, masks, start = [], [], 0
    for product, lengths in enumerate(layout.lengths):
        if lengths[number] == 0:
            continue
        if item.cls_D is not None:
            rows.append(normalise(item.cls_D + item.modality_D))
        content = slice(start, start + lengths[number] - (item.cls_D is not None))
        masked_n, base_nD = _content(item, content, layout.product_B[product], layout.draw_B[product], seed)
        masks.append(masked_n)
        for offset, base_D in enumerate(base_nD):
            row = start + offset
            total_D = base_D + item.position_table_PD[item.position_N[row]] + item.modality_D
            if item.part_table_2D is not None:
                total_D = total_D + item.part_table_2D[item.part_N[row]]
            if item.extra_ND is not None:
                total_D = total_D + item.extra_ND[row]
            rows.append(normalise(total_D))
        start = content.stop
    width = item.modality_D.shape[0]
    # Every parameter stays in the graph when no product has the modality: zero gradients, never None (DESIGN 3.6).
    anchor = sum(value.reshape(-1, width)[:0].sum() for value in item.floats().values())
    slab = torch.stack(rows) + anchor if rows else item.modality_D.expand(0, width) + anchor
    return slab, torch.cat(masks) if masks else item.unit_N.new_zeros(0, dtype=torch.bool)


def _content(
    item: EmbedInput, content: slice, product: Tensor, draw: Tensor, seed: int
) -> tuple[Tensor, list[Tensor] | Tensor]:
    """The mask of one segment's content rows, and the rows before anything is added."""
    unit_n = item.unit_N[content]
    product_n, draw_n = product.expand(len(unit_n)), draw.expand(len(unit_n))
    masked_n = draw_mask(unit_n, item.part_N[content], product_n, draw_n, item.modality, seed, item.mask)
    if item.token_N is None:
        assert item.projected_ND is not None
        pairs = zip(item.projected_ND[content], masked_n.tolist(), strict=True)
        return masked_n, [item.mask_D if masked else row_D for row_D, masked in pairs]  # type: ignore[misc]
    assert item.token_table_VD is not None
    row_n = torch.arange(len(unit_n), device=unit_n.device)
    token_n = replace_tokens(item.token_N[content], masked_n, row_n, product_n, draw_n, item.modality, seed, item.mask)
    return masked_n, item.token_table_VD[token_n]
