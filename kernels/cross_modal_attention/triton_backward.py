"""Backward kernels of cross_modal_attention: dq by query tile, dk and dv by key tile. No atomics, so the bits repeat.

Weights are recomputed from the saved log-sum-exp, dropout from its counters. Letters as in triton_forward.py; M always
counts query rows and N key rows, whichever side owns the tile.
"""

import triton
import triton.language as tl

from m5ds.kernels.cross_modal_attention.triton_common import is_seen, kept_weights, read_tile


@triton.jit(do_not_specialize=["seed", "layer", "threshold"])
def attention_bwd_dq_kernel(
    p_q,
    p_k,
    p_v,
    p_out,
    p_grad,
    p_lse,
    p_dq,
    p_delta,
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
    scale,
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
    """Also writes delta = rowsum(grad * out) for the dk/dv kernel."""
    i_tile = tl.program_id(0) // num_heads
    i_head = (tl.program_id(0) % num_heads).to(tl.int64)
    own_begin, own_end, other_begin, other_end, i_product = read_tile(p_tiles, i_tile)

    o_own = own_begin + tl.arange(0, BLOCK_M)
    m_own = o_own < own_end
    b_row = tl.load(p_own + o_own, mask=m_own, other=0).to(tl.int64)
    o_dim = tl.arange(0, BLOCK_D)
    m_dim = o_dim < HEAD_DIM
    m_q = m_own[:, None] & m_dim[None, :]
    o_packed = (b_row[:, None] * num_heads + i_head) * HEAD_DIM + o_dim[None, :]
    # [M, D]
    b_q = tl.load(p_q + b_row[:, None] * stride_qt + i_head * stride_qh + o_dim[None, :], mask=m_q, other=0.0)
    b_out = tl.load(p_out + o_packed, mask=m_q, other=0.0).to(tl.float32)
    b_grad = tl.load(p_grad + o_packed, mask=m_q, other=0.0)
    b_lse = tl.load(p_lse + i_head * num_rows + b_row, mask=m_own, other=0.0)
    b_delta = tl.sum(b_out * b_grad.to(tl.float32), 1)
    tl.store(p_delta + i_head * num_rows + b_row, b_delta, mask=m_own)
    if UPCAST:
        b_q = b_q.to(tl.float32)
        b_grad = b_grad.to(tl.float32)
    b_code = tl.load(p_code + b_row, mask=m_own, other=0)
    if DROPOUT:
        b_offset = tl.load(p_offset + b_row, mask=m_own, other=0).to(tl.int64)
        b_product = tl.load(p_product + i_product)
        b_draw = tl.load(p_draw + i_product)

    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
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
        b_key_code = tl.load(p_code + b_key_row, mask=m_key, other=0)
        m_visible = m_key[None, :] & m_own[:, None] & is_seen(b_code[:, None], b_key_code[None, :])
        # [M, N]; masked before exp2, since a masked score may exceed the log-sum-exp without bound
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale_log2 - b_lse[:, None]
        b_weight = tl.exp2(tl.where(m_visible, b_score, float("-inf")))
        b_dweight = tl.dot(b_grad, tl.trans(b_v), input_precision="ieee")
        if DROPOUT:
            o_call = i_start + 4 * tl.arange(0, BLOCK_N // 4)
            b_call_row = tl.load(p_other + o_call, mask=o_call < other_end, other=0).to(tl.int64)
            b_call = tl.load(p_offset + b_call_row, mask=o_call < other_end, other=0).to(tl.int64) // 4
            m_kept = kept_weights(b_offset, b_call, b_product, b_draw, i_head, seed, layer, threshold)
            b_dweight = tl.where(tl.reshape(m_kept, (BLOCK_M, BLOCK_N)), b_dweight * dropout_scale, 0.0)
        b_dscore = b_weight * (b_dweight - b_delta[:, None])
        b_dq += tl.dot(b_dscore.to(b_k.dtype), b_k, input_precision="ieee")
    tl.store(p_dq + o_packed, (b_dq * scale).to(p_dq.dtype.element_ty), mask=m_q)


@triton.jit(do_not_specialize=["seed", "layer", "threshold"])
def attention_bwd_dkdv_kernel(
    p_q,
    p_k,
    p_v,
    p_grad,
    p_lse,
    p_delta,
    p_dk,
    p_dv,
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
    scale,
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
    """Loops over the query rows that see the tile's keys; needs delta from the dq kernel."""
    i_tile = tl.program_id(0) // num_heads
    i_head = (tl.program_id(0) % num_heads).to(tl.int64)
    own_begin, own_end, other_begin, other_end, i_product = read_tile(p_tiles, i_tile)

    o_own = own_begin + tl.arange(0, BLOCK_N)
    b_row = tl.load(p_own + o_own, mask=o_own < own_end, other=-1).to(tl.int64)
    m_own = b_row >= 0
    o_dim = tl.arange(0, BLOCK_D)
    m_dim = o_dim < HEAD_DIM
    m_kv = m_own[:, None] & m_dim[None, :]
    # [N, D]
    b_k = tl.load(p_k + b_row[:, None] * stride_kt + i_head * stride_kh + o_dim[None, :], mask=m_kv, other=0.0)
    b_v = tl.load(p_v + b_row[:, None] * stride_vt + i_head * stride_vh + o_dim[None, :], mask=m_kv, other=0.0)
    if UPCAST:
        b_k = b_k.to(tl.float32)
        b_v = b_v.to(tl.float32)
    b_code = tl.load(p_code + b_row, mask=m_own, other=0)
    if DROPOUT:
        o_call = own_begin + 4 * tl.arange(0, BLOCK_N // 4)
        b_call_row = tl.load(p_own + o_call, mask=o_call < own_end, other=0).to(tl.int64)
        b_call = tl.load(p_offset + b_call_row, mask=o_call < own_end, other=0).to(tl.int64) // 4
        b_product = tl.load(p_product + i_product)
        b_draw = tl.load(p_draw + i_product)

    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i_start in range(other_begin, other_end, BLOCK_M):
        o_query = i_start + tl.arange(0, BLOCK_M)
        m_query = o_query < other_end
        b_query_row = tl.load(p_other + o_query, mask=m_query, other=0).to(tl.int64)
        m_q = m_query[:, None] & m_dim[None, :]
        o_packed = (b_query_row[:, None] * num_heads + i_head) * HEAD_DIM + o_dim[None, :]
        # [M, D]
        b_q = tl.load(p_q + b_query_row[:, None] * stride_qt + i_head * stride_qh + o_dim[None, :], mask=m_q, other=0.0)
        b_grad = tl.load(p_grad + o_packed, mask=m_q, other=0.0)
        b_lse = tl.load(p_lse + i_head * num_rows + b_query_row, mask=m_query, other=0.0)
        b_delta = tl.load(p_delta + i_head * num_rows + b_query_row, mask=m_query, other=0.0)
        if UPCAST:
            b_q = b_q.to(tl.float32)
            b_grad = b_grad.to(tl.float32)
        b_query_code = tl.load(p_code + b_query_row, mask=m_query, other=0)
        m_visible = m_own[:, None] & m_query[None, :] & is_seen(b_query_code[None, :], b_code[:, None])
        # [N, M]
        b_score = tl.dot(b_k, tl.trans(b_q), input_precision="ieee") * scale_log2 - b_lse[None, :]
        b_weight = tl.exp2(tl.where(m_visible, b_score, float("-inf")))
        b_dweight = tl.dot(b_v, tl.trans(b_grad), input_precision="ieee")
        b_kept_weight = b_weight
        if DROPOUT:
            b_offset = tl.load(p_offset + b_query_row, mask=m_query, other=0).to(tl.int64)
            m_kept = kept_weights(b_offset, b_call, b_product, b_draw, i_head, seed, layer, threshold)
            m_kept = tl.reshape(tl.permute(m_kept, (1, 2, 0)), (BLOCK_N, BLOCK_M))
            b_kept_weight = tl.where(m_kept, b_weight * dropout_scale, 0.0)
            b_dweight = tl.where(m_kept, b_dweight * dropout_scale, 0.0)
        b_dv += tl.dot(b_kept_weight.to(b_grad.dtype), b_grad, input_precision="ieee")
        b_dscore = b_weight * (b_dweight - b_delta[None, :])
        b_dk += tl.dot(b_dscore.to(b_q.dtype), b_q, input_precision="ieee")
    o_out = (b_row[:, None] * num_heads + i_head) * HEAD_DIM + o_dim[None, :]
    tl.store(p_dk + o_out, (b_dk * scale).to(p_dk.dtype.element_ty), mask=m_kv)
    tl.store(p_dv + o_out, b_dv.to(p_dv.dtype.element_ty), mask=m_kv)
