"""Forward kernel of cross_modal_attention: online softmax over the key rows of each tile's list (tables.py).

Letters: M rows of the tile, N key rows of a step, D head dim. Log-sum-exp and scores are in base 2.
"""

import triton
import triton.language as tl

from m5ds.kernels.cross_modal_attention.triton_common import is_seen, kept_weights, read_tile


@triton.jit(do_not_specialize=["seed", "layer", "threshold"])
def attention_fwd_kernel(
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
    p_own,
    p_other,
    p_tiles,
    p_code,
    p_offset,
    p_product,
    p_draw,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    num_rows,
    num_heads,
    scale_log2,
    seed: tl.int64,
    layer: tl.int64,
    threshold: tl.int64,
    dropout_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DROPOUT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    i_tile = tl.program_id(0) // num_heads
    i_head = (tl.program_id(0) % num_heads).to(tl.int64)
    own_begin, own_end, other_begin, other_end, i_product = read_tile(p_tiles, i_tile)

    o_own = own_begin + tl.arange(0, BLOCK_M)
    m_own = o_own < own_end
    b_row = tl.load(p_own + o_own, mask=m_own, other=0).to(tl.int64)
    o_dim = tl.arange(0, BLOCK_D)
    m_dim = o_dim < HEAD_DIM
    m_q = m_own[:, None] & m_dim[None, :]
    # [M, D]
    b_q = tl.load(p_q + b_row[:, None] * stride_qt + i_head * stride_qh + o_dim[None, :], mask=m_q, other=0.0)
    if UPCAST:
        b_q = b_q.to(tl.float32)
    b_code = tl.load(p_code + b_row, mask=m_own, other=0)
    if DROPOUT:
        b_offset = tl.load(p_offset + b_row, mask=m_own, other=0).to(tl.int64)
        b_product = tl.load(p_product + i_product)
        b_draw = tl.load(p_draw + i_product)

    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i_start in range(other_begin, other_end, BLOCK_N):
        o_key = i_start + tl.arange(0, BLOCK_N)
        b_key_row = tl.load(p_other + o_key, mask=o_key < other_end, other=-1).to(tl.int64)
        m_key = b_key_row >= 0
        m_kv = m_key[:, None] & m_dim[None, :]
        # [N, D]
        b_k = tl.load(p_k + b_key_row[:, None] * stride_kt + i_head * stride_kh + o_dim[None, :], mask=m_kv, other=0.0)
        b_v = tl.load(p_v + b_key_row[:, None] * stride_vt + i_head * stride_vh + o_dim[None, :], mask=m_kv, other=0.0)
        if UPCAST:
            b_k = b_k.to(tl.float32)
            b_v = b_v.to(tl.float32)
        # [M, N]
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale_log2
        b_key_code = tl.load(p_code + b_key_row, mask=m_key, other=0)
        m_visible = m_key[None, :] & m_own[:, None] & is_seen(b_code[:, None], b_key_code[None, :])
        b_score = tl.where(m_visible, b_score, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_score, 1))
        # a row that has seen no key yet pivots at 0, so that no -inf is subtracted from -inf
        b_pivot = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_weight = tl.exp2(b_score - b_pivot[:, None])
        b_decay = tl.exp2(b_max - b_pivot)
        b_sum = b_sum * b_decay + tl.sum(b_weight, 1)
        if DROPOUT:
            o_call = i_start + 4 * tl.arange(0, BLOCK_N // 4)
            b_call_row = tl.load(p_other + o_call, mask=o_call < other_end, other=0).to(tl.int64)
            b_call = tl.load(p_offset + b_call_row, mask=o_call < other_end, other=0).to(tl.int64) // 4
            m_kept = kept_weights(b_offset, b_call, b_product, b_draw, i_head, seed, layer, threshold)
            b_weight = tl.where(tl.reshape(m_kept, (BLOCK_M, BLOCK_N)), b_weight * dropout_scale, 0.0)
        b_acc = b_acc * b_decay[:, None] + tl.dot(b_weight.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new_max

    m_seen = b_sum > 0.0
    b_out = b_acc / tl.where(m_seen, b_sum, 1.0)[:, None]
    b_lse = tl.where(m_seen, b_max + tl.log2(tl.where(m_seen, b_sum, 1.0)), 0.0)
    p_out_row = p_out + (b_row[:, None] * num_heads + i_head) * HEAD_DIM + o_dim[None, :]
    tl.store(p_out_row, b_out.to(p_out.dtype.element_ty), mask=m_q)
    tl.store(p_lse + i_head * num_rows + b_row, b_lse, mask=m_own)
