"""One kernel for both directions: the gradient is dropped and scaled exactly as the values were.

A program takes ROWS rows and 4 * CALLS features. Prefixes: p_ pointer, b_ block value, o_ offset, m_ mask.
"""

import triton
import triton.language as tl

from m5ds.kernels.common.philox import Stream
from m5ds.kernels.common.philox_triton import interleaved, random_words

_STREAM = tl.constexpr(int(Stream.HIDDEN_DROPOUT))


# What differs from launch to launch must not become a constant of the machine code (Triton makes one of a plain 1).
@triton.jit(do_not_specialize=["first_row", "num_rows", "seed", "index", "threshold"])
def hidden_dropout_kernel(
    p_x,
    p_out,
    p_row_product,
    p_row_modality,
    p_row_position,
    p_product,
    p_draw,
    first_row: tl.int64,
    num_rows: tl.int64,
    width,
    num_calls,
    seed: tl.int64,
    index: tl.int64,
    threshold: tl.int64,
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
    b_element = b_position[:, None] * num_calls + o_call[None, :]
    b_w0, b_w1, b_w2, b_w3 = random_words(
        b_element, b_product[:, None], b_draw[:, None], seed, _STREAM, b_modality[:, None], index
    )
    b_words = tl.reshape(interleaved(b_w0, b_w1, b_w2, b_w3), (ROWS, 4 * CALLS))
    o_feature = tl.program_id(1) * CALLS * 4 + tl.arange(0, 4 * CALLS)
    o_value = o_row[:, None] * width + o_feature[None, :]
    m_value = m_row[:, None] & (o_feature[None, :] < width)
    # [ROWS, 4 * CALLS]
    b_x = tl.load(p_x + o_value, mask=m_value, other=0.0).to(tl.float32)
    b_out = tl.where(b_words.to(tl.int64) >= threshold, b_x * scale, 0.0)
    tl.store(p_out + o_value, b_out.to(p_out.dtype.element_ty), mask=m_value)
