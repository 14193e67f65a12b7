"""One modality's rows from their source to the packed buffer in one pass, and back (DESIGN section 5).

A program takes a run of rows of the modality's slab. Row r of the slab belongs to product row_product[r] at
row_position[r] of its segment; where the modality has [CLS] rows, position 0 is one, and content row n = r - cls_before
(of the product, itself counted). Sums and statistics are float32. Nothing is atomic: each output is written once.

Letters: N content rows, D width. Prefixes: p_ pointer, b_ block value, i_ program index, n_ number.
"""

import triton
import triton.language as tl
from triton.language.random import philox_impl

from m5ds.kernels.embed_modalities.masking import MASK_BELOW, RANDOM_BELOW
from m5ds.kernels.philox import Stream

NO_MASK, MASK_UNIT, MASK_KEY_OR_VALUE = 0, 1, 2
NUM_VECTORS = 6
"""Vectors that the backward sums over rows: norm weight, norm bias, mask, [CLS], part 0, part 1 (the last three sum to
the modality's)."""

_KEY_OR_VALUE = tl.constexpr(MASK_KEY_OR_VALUE)
_MASK_STREAM = tl.constexpr(int(Stream.MASK))
_REPLACEMENT_STREAM = tl.constexpr(int(Stream.REPLACEMENT))
_MASK_BELOW = tl.constexpr(MASK_BELOW)
_RANDOM_BELOW = tl.constexpr(RANDOM_BELOW)
_NUM_VECTORS = tl.constexpr(NUM_VECTORS)


@triton.jit
def _random_words(seed, draw, product, stream: tl.constexpr, modality, element):
    """The first two words of kernels/philox.py's random_words, as int64 in [0, 2**32)."""
    zero = element * 0
    word_0, word_1, _, _ = philox_impl(
        element.to(tl.uint32),
        (zero + modality * 65536 + stream * 16777216).to(tl.uint32),
        product.to(tl.uint32),
        (product >> 32).to(tl.uint32),
        (zero + seed).to(tl.uint32),
        draw.to(tl.uint32),
    )
    return word_0.to(tl.int64), word_1.to(tl.int64)


@triton.jit
def _locate(p_row_product, p_row_position, p_cls_before, slab_start, row, inside, has_cls):
    """Product, content row, offset inside the segment's content (-1: a [CLS] row), and whether it is a content row."""
    product = tl.load(p_row_product + slab_start + row, mask=inside, other=0)
    offset = tl.load(p_row_position + slab_start + row, mask=inside, other=0) - has_cls
    content = row - tl.load(p_cls_before + product, mask=inside & (has_cls != 0), other=0)
    return product, content, offset, inside & (offset >= 0)


@triton.jit
def _vector(p_vector, column, width, wanted):
    return tl.load(p_vector + column, mask=(column < width) & (wanted != 0), other=0.0).to(tl.float32)


@triton.jit
def _gather(p_rows, index, wanted, column, width):
    """[rows, columns] float32 of p_rows[index], zeros where not wanted."""
    mask = wanted[:, None] & (column < width)[None, :]
    return tl.load(p_rows + index[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _sum_of_embeddings(
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
    b_x = b_base + _gather(p_position_table, position, is_content, column, width)
    b_x += _gather(p_extra, content, is_content & (has_extra != 0), column, width)
    part = tl.load(p_part + content, mask=is_content & (has_part != 0), other=0)
    b_x += tl.where((part == 0)[:, None], b_part_0[None, :], b_part_1[None, :])
    return tl.where(is_content[:, None], b_x, b_cls[None, :]) + b_modality[None, :], part


@triton.jit(
    do_not_specialize=[
        "slab_start",
        "slab_rows",
        "content_start",
        "seed",
        "modality_number",
        "threshold",
        "mask_kind",
        "text",
        "mask_token",
        "first_random",
        "num_random",
        "has_cls",
        "has_part",
        "has_extra",
    ]
)
def embed_fwd_kernel(
    p_base,
    p_position_table,
    p_modality,
    p_part_table,
    p_extra,
    p_mask,
    p_cls,
    p_norm_weight,
    p_norm_bias,
    p_token,
    p_position,
    p_unit,
    p_part,
    p_row_product,
    p_row_position,
    p_cls_before,
    p_product,
    p_draw,
    p_x,
    p_mean,
    p_rstd,
    p_masked,
    p_seen,
    slab_start: tl.int64,
    slab_rows: tl.int64,
    content_start: tl.int64,
    seed: tl.int64,
    modality_number: tl.int64,
    threshold: tl.int64,
    mask_kind: tl.int32,
    text: tl.int32,
    mask_token: tl.int64,
    first_random: tl.int64,
    num_random: tl.int64,
    has_cls: tl.int32,
    has_part: tl.int32,
    has_extra: tl.int32,
    width: tl.int32,
    eps: tl.float32,
    ROWS: tl.constexpr,
    PROGRAM_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """PROGRAM_ROWS rows of the slab. Grid (blocks of rows). Writes x, row statistics, mask, and the tokens seen."""
    column = tl.arange(0, COLUMNS)
    b_modality = _vector(p_modality, column, width, 1)
    b_part_0 = _vector(p_part_table, column, width, has_part)
    b_part_1 = _vector(p_part_table + width, column, width, has_part)
    b_mask = tl.zeros((COLUMNS,), dtype=tl.float32)
    if not TOKENS:
        b_mask = _vector(p_mask, column, width, mask_kind)
    b_cls = _vector(p_cls, column, width, has_cls)
    b_weight = _vector(p_norm_weight, column, width, 1)
    b_bias = _vector(p_norm_bias, column, width, 1)
    first = tl.program_id(0).to(tl.int64) * PROGRAM_ROWS
    for start in range(first, tl.minimum(first + PROGRAM_ROWS, slab_rows), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < slab_rows
        product, content, offset, is_content = _locate(
            p_row_product, p_row_position, p_cls_before, slab_start, row, inside, has_cls
        )
        hashed = tl.load(p_product + product, mask=inside, other=0)
        draw = tl.load(p_draw + product, mask=inside, other=0)
        masked = is_content & (mask_kind != 0)
        if mask_kind != 0:
            unit = tl.load(p_unit + content, mask=is_content, other=-1)
            word_0, word_1 = _random_words(seed, draw, hashed, _MASK_STREAM, modality_number, unit)
            masked = is_content & (unit >= 0) & (word_0 < threshold)
            if mask_kind == _KEY_OR_VALUE:
                part = tl.load(p_part + content, mask=is_content, other=0)
                masked = masked & (part == (word_1 & 1))
        tl.store(p_masked + content_start + content, masked.to(tl.uint8), mask=is_content)
        if TOKENS:
            token = tl.load(p_token + content, mask=is_content, other=0)
            if text != 0:
                word_0, word_1 = _random_words(seed, draw, hashed, _REPLACEMENT_STREAM, modality_number, offset)
                replaced = tl.where(word_0 < _RANDOM_BELOW, first_random + word_1 % num_random, token)
                replaced = tl.where(word_0 < _MASK_BELOW, mask_token, replaced)
                token = tl.where(masked, replaced, token)
            else:
                token = tl.where(masked, mask_token, token)
            tl.store(p_seen + content_start + content, token, mask=is_content)
            b_base = _gather(p_base, token, is_content, column, width)
        else:
            b_base = _gather(p_base, content, is_content & (masked == 0), column, width)
        b_x, _ = _sum_of_embeddings(
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
            TOKENS,
        )
        b_mean = tl.sum(b_x, 1) / width
        b_centred = tl.where((column < width)[None, :], b_x - b_mean[:, None], 0.0)
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / width + eps)
        b_out = b_centred * b_rstd[:, None] * b_weight[None, :] + b_bias[None, :]
        tl.store(p_mean + slab_start + row, b_mean, mask=inside)
        tl.store(p_rstd + slab_start + row, b_rstd, mask=inside)
        tl.store(
            p_x + (slab_start + row)[:, None] * width + column[None, :],
            b_out.to(p_x.dtype.element_ty),
            mask=inside[:, None] & (column < width)[None, :],
        )


@triton.jit(
    do_not_specialize=[
        "slab_start",
        "slab_rows",
        "content_start",
        "has_mask",
        "has_cls",
        "has_part",
        "has_extra",
        "write_base",
    ]
)
def embed_bwd_rows_kernel(
    p_grad_x,
    p_base,
    p_position_table,
    p_modality,
    p_part_table,
    p_extra,
    p_mask,
    p_cls,
    p_norm_weight,
    p_position,
    p_part,
    p_row_product,
    p_row_position,
    p_cls_before,
    p_mean,
    p_rstd,
    p_masked,
    p_seen,
    p_grad_base,
    p_grad_rows,
    p_grad_vectors,
    slab_start: tl.int64,
    slab_rows: tl.int64,
    content_start: tl.int64,
    has_mask: tl.int32,
    has_cls: tl.int32,
    has_part: tl.int32,
    has_extra: tl.int32,
    write_base: tl.int32,
    width: tl.int32,
    ROWS: tl.constexpr,
    PROGRAM_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Gradient before LayerNorm of PROGRAM_ROWS rows, and its sums into vectors [programs, NUM_VECTORS, D].

    `grad_rows` [N, D] gets the gradient of every content row (position and token tables, extra), `grad_base` [N, D] the
    projection's, zero where masked; the sum before LayerNorm is computed again from the inputs.
    """
    column = tl.arange(0, COLUMNS)
    b_modality = _vector(p_modality, column, width, 1)
    b_part_0 = _vector(p_part_table, column, width, has_part)
    b_part_1 = _vector(p_part_table + width, column, width, has_part)
    b_mask = tl.zeros((COLUMNS,), dtype=tl.float32)
    if not TOKENS:
        b_mask = _vector(p_mask, column, width, has_mask)
    b_cls = _vector(p_cls, column, width, has_cls)
    b_weight = _vector(p_norm_weight, column, width, 1)
    b_sum_weight = tl.zeros((COLUMNS,), dtype=tl.float32)
    b_sum_bias = tl.zeros((COLUMNS,), dtype=tl.float32)
    b_sum_mask = tl.zeros((COLUMNS,), dtype=tl.float32)
    b_sum_cls = tl.zeros((COLUMNS,), dtype=tl.float32)
    b_sum_part_0 = tl.zeros((COLUMNS,), dtype=tl.float32)
    b_sum_part_1 = tl.zeros((COLUMNS,), dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64) * PROGRAM_ROWS
    for start in range(first, tl.minimum(first + PROGRAM_ROWS, slab_rows), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < slab_rows
        product, content, offset, is_content = _locate(
            p_row_product, p_row_position, p_cls_before, slab_start, row, inside, has_cls
        )
        masked = tl.load(p_masked + content_start + content, mask=is_content, other=0) != 0
        if TOKENS:
            token = tl.load(p_seen + content_start + content, mask=is_content, other=0)
            b_base = _gather(p_base, token, is_content, column, width)
        else:
            b_base = _gather(p_base, content, is_content & (masked == 0), column, width)
        b_x, part = _sum_of_embeddings(
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
            TOKENS,
        )
        b_mean = tl.load(p_mean + slab_start + row, mask=inside, other=0.0)
        b_rstd = tl.load(p_rstd + slab_start + row, mask=inside, other=0.0)
        b_grad_x = _gather(p_grad_x, slab_start + row, inside, column, width)
        b_hat = tl.where((column < width)[None, :], (b_x - b_mean[:, None]) * b_rstd[:, None], 0.0)
        b_grad_hat = b_grad_x * b_weight[None, :]
        b_along = tl.sum(b_grad_hat * b_hat, 1) / width
        b_average = tl.sum(b_grad_hat, 1) / width
        b_grad = (b_grad_hat - b_hat * b_along[:, None] - b_average[:, None]) * b_rstd[:, None]
        b_sum_weight += tl.sum(b_grad_x * b_hat, 0)
        b_sum_bias += tl.sum(b_grad_x, 0)
        b_sum_cls += tl.sum(tl.where((inside & (is_content == 0))[:, None], b_grad, 0.0), 0)
        b_sum_mask += tl.sum(tl.where(masked[:, None], b_grad, 0.0), 0)
        b_sum_part_0 += tl.sum(tl.where((is_content & (part == 0))[:, None], b_grad, 0.0), 0)
        b_sum_part_1 += tl.sum(tl.where((is_content & (part != 0))[:, None], b_grad, 0.0), 0)
        mask = is_content[:, None] & (column < width)[None, :]
        place = content[:, None] * width + column[None, :]
        tl.store(p_grad_rows + place, b_grad.to(p_grad_rows.dtype.element_ty), mask=mask)
        if not TOKENS:
            b_grad = tl.where(masked[:, None], 0.0, b_grad)
            tl.store(p_grad_base + place, b_grad.to(p_grad_base.dtype.element_ty), mask=mask & (write_base != 0))
    p_sums = p_grad_vectors + tl.program_id(0).to(tl.int64) * _NUM_VECTORS * width + column
    in_row = column < width
    tl.store(p_sums, b_sum_weight, mask=in_row)
    tl.store(p_sums + width, b_sum_bias, mask=in_row)
    tl.store(p_sums + 2 * width, b_sum_mask, mask=in_row)
    tl.store(p_sums + 3 * width, b_sum_cls, mask=in_row)
    tl.store(p_sums + 4 * width, b_sum_part_0, mask=in_row)
    tl.store(p_sums + 5 * width, b_sum_part_1, mask=in_row)


@triton.jit
def embed_bwd_table_kernel(
    p_grad_rows,
    p_order,
    p_first,
    p_last,
    p_entry,
    p_grad_table,
    width: tl.int32,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of one entry of an embedding table: the sum of grad_rows[order[first:last]], in order.

    Grid (runs of equal indices, chunks of columns). An empty run writes nothing: the table starts as zeros.
    """
    run = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(p_first + run), tl.load(p_last + run)
    if first < last:
        entry = tl.load(p_entry + run)
        b_sum = tl.zeros((COLUMNS,), dtype=tl.float32)
        for start in range(first, last, ROWS):
            slot = start + tl.arange(0, ROWS)
            valid = slot < last
            index = tl.load(p_order + slot, mask=valid, other=0)
            b_sum += tl.sum(_gather(p_grad_rows, index, valid, column, width), 0)
        tl.store(p_grad_table + entry * width + column, b_sum.to(p_grad_table.dtype.element_ty), mask=column < width)
