"""One kernel for both directions: the gradient is dropped and scaled exactly as the values were.

A program takes ROWS rows and 4 * CALLS features. Prefixes: p_ pointer, b_ block value, o_ offset, m_ mask.
"""

import triton
import triton.language as tl
from triton.language.random import philox_impl

from m5ds.kernels.philox import Stream

_STREAM = tl.constexpr(int(Stream.HIDDEN_DROPOUT))


@triton.jit
def hidden_dropout_kernel(
    p_x,
    p_out,
    p_row_product,
    p_row_modality,
    p_row_position,
    p_product,
    p_draw,
    first_row,
    num_rows,
    width,
    num_calls,
    seed,
    index,
    threshold,
    scale,
    ROWS: tl.constexpr,
    CALLS: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_call = tl.program_id(1) * CALLS + tl.arange(0, CALLS)
    m_row = o_row < num_rows
    # [ROWS]
    b_owner = tl.load(p_row_product + first_row + o_row, mask=m_row, other=0)
    b_modality = tl.load(p_row_modality + first_row + o_row, mask=m_row, other=0)
    b_position = tl.load(p_row_position + first_row + o_row, mask=m_row, other=0)
    b_product = tl.load(p_product + b_owner, mask=m_row, other=0)
    b_draw = tl.load(p_draw + b_owner, mask=m_row, other=0)
    # [ROWS, CALLS]
    b_zero = tl.zeros((ROWS, CALLS), tl.uint32)
    b_element = (b_position[:, None] * num_calls + o_call[None, :]).to(tl.uint32)
    b_purpose = b_zero + (b_modality * 65536 + _STREAM * 16777216 + index).to(tl.uint32)[:, None]
    b_w0, b_w1, b_w2, b_w3 = philox_impl(
        b_element,
        b_purpose,
        b_zero + b_product.to(tl.uint32)[:, None],
        b_zero + (b_product >> 32).to(tl.uint32)[:, None],
        b_zero + seed.to(tl.uint32),
        b_zero + b_draw.to(tl.uint32)[:, None],
    )
    # join puts a new last axis, so that [..., 2, 2] reads w0 w1 w2 w3 after the reshape
    b_words = tl.reshape(tl.join(tl.join(b_w0, b_w2), tl.join(b_w1, b_w3)), (ROWS, 4 * CALLS))
    o_feature = tl.program_id(1) * CALLS * 4 + tl.arange(0, 4 * CALLS)
    o_value = o_row[:, None] * width + o_feature[None, :]
    m_value = m_row[:, None] & (o_feature[None, :] < width)
    # [ROWS, 4 * CALLS]
    b_x = tl.load(p_x + o_value, mask=m_value, other=0.0).to(tl.float32)
    b_out = tl.where(b_words.to(tl.int64) >= threshold, b_x * scale, 0.0)
    tl.store(p_out + o_value, b_out.to(p_out.dtype.element_ty), mask=m_value)
