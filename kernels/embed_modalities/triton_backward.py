"""Backward kernels of embed_modalities: gradients of rows and vectors, and of embedding tables.

Letters and prefixes: triton_common.py.
"""

import triton
import triton.language as tl

from m5ds.kernels.embed_modalities.slots import VectorSums
from m5ds.kernels.embed_modalities.triton_common import gather_rows, load_vector, locate, sum_of_embeddings

NUM_VECTORS = len(VectorSums._fields)
_NUM_VECTORS = tl.constexpr(NUM_VECTORS)


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
    b_modality = load_vector(p_modality, column, width, 1)
    b_part_0 = load_vector(p_part_table, column, width, has_part)
    b_part_1 = load_vector(p_part_table + width, column, width, has_part)
    b_mask = tl.zeros((COLUMNS,), dtype=tl.float32)
    if not TOKENS:
        b_mask = load_vector(p_mask, column, width, has_mask)
    b_cls = load_vector(p_cls, column, width, has_cls)
    b_weight = load_vector(p_norm_weight, column, width, 1)
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
        product, content, offset, is_content = locate(
            p_row_product, p_row_position, p_cls_before, slab_start, row, inside, has_cls
        )
        masked = tl.load(p_masked + content_start + content, mask=is_content, other=0) != 0
        if TOKENS:
            token = tl.load(p_seen + content_start + content, mask=is_content, other=0)
            b_base = gather_rows(p_base, token, is_content, column, width)
        else:
            b_base = gather_rows(p_base, content, is_content & (masked == 0), column, width)
        b_x, part = sum_of_embeddings(
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
        b_grad_x = gather_rows(p_grad_x, slab_start + row, inside, column, width)
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
    # the fields of slots.py's VectorSums in their order
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
            b_sum += tl.sum(gather_rows(p_grad_rows, index, valid, column, width), 0)
        tl.store(p_grad_table + entry * width + column, b_sum.to(p_grad_table.dtype.element_ty), mask=column < width)
