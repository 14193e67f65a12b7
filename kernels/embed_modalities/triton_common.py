"""What the embedding kernels share: where a row comes from, and the sum that LayerNorm sees, computed wherever needed.

A program takes a run of rows of the modality's slab. Row r of the slab belongs to product row_product[r] at
row_position[r] of its segment; where the modality has [CLS] rows, position 0 is one, and content row n = r - cls_before
(of the product, itself counted). Sums and statistics are float32. Nothing is atomic: each output is written once.

Letters: N content rows, D width. Prefixes: p_ pointer, b_ block value, i_ program index, n_ number.
"""

import triton
import triton.language as tl

NO_MASK, MASK_UNIT, MASK_KEY_OR_VALUE = 0, 1, 2
"""What is masked together (masking.py), as the kernels are told."""


@triton.jit
def locate(p_row_product, p_row_position, p_cls_before, slab_start, row, inside, has_cls):
    """Product, content row, offset inside the segment's content (-1: a [CLS] row), and whether it is a content row."""
    product = tl.load(p_row_product + slab_start + row, mask=inside, other=0)
    offset = tl.load(p_row_position + slab_start + row, mask=inside, other=0) - has_cls
    content = row - tl.load(p_cls_before + product, mask=inside & (has_cls != 0), other=0)
    return product, content, offset, inside & (offset >= 0)


@triton.jit
def load_vector(p_vector, column, width, wanted):
    return tl.load(p_vector + column, mask=(column < width) & (wanted != 0), other=0.0).to(tl.float32)


@triton.jit
def gather_rows(p_rows, index, wanted, column, width):
    """[rows, columns] float32 of p_rows[index], zeros where not wanted."""
    mask = wanted[:, None] & (column < width)[None, :]
    return tl.load(p_rows + index[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def sum_of_embeddings(
    b_base,
    masked,
    content,
    is_content,
    p_position_table,
    p_position,
    p_part,
    p_extra,
    b_modality,
    b_part_0,
    b_part_1,
    b_mask,
    b_cls,
    column,
    width,
    has_part,
    has_extra,
    TOKENS: tl.constexpr,
):
    """[rows, columns] before LayerNorm, and each row's part."""
    if not TOKENS:
        b_base = tl.where(masked[:, None], b_mask[None, :], b_base)
    position = tl.load(p_position + content, mask=is_content, other=0)
    b_x = b_base + gather_rows(p_position_table, position, is_content, column, width)
    b_x += gather_rows(p_extra, content, is_content & (has_extra != 0), column, width)
    part = tl.load(p_part + content, mask=is_content & (has_part != 0), other=0)
    b_x += tl.where((part == 0)[:, None], b_part_0[None, :], b_part_1[None, :])
    return tl.where(is_content[:, None], b_x, b_cls[None, :]) + b_modality[None, :], part
