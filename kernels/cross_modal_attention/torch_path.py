"""The CPU path of cross_modal_attention: few SDPA calls over buckets of near-equal sequences (plan.py).

Shape letters: T packed rows, N rows of the gathered buffer, H heads, D head dim, P sequences, Q and K padded rows.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.cross_modal_attention.dropout import Dropout, keep_mask
from m5ds.kernels.cross_modal_attention.planning.plan import Bucket, plan_for
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec


class _Zeros(torch.autograd.Function):
    """Zeros that stay connected: where nothing attends, q, k and v still get gradient tensors, not None."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.zeros_like(q)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return tuple(torch.zeros_like(grad) if needed else None for needed in ctx.needs_input_grad)


@torch.compiler.disable
def cross_modal_attention_torch(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: PackedLayout,
    spec: AttentionSpec,
    *,
    scale: float,
    dropout: Dropout,
) -> Tensor:
    """Same contract as `cross_modal_attention_reference`. bf16 and fp16 are computed in fp32 on a CPU (FINDINGS.md).

    A row that is not finite makes NaN of its own output and of every row that sees it. It reaches no other row, and
    outputs that it spoiled give no gradient.
    """
    num_heads, head_dim = q_THD.shape[1:]
    plan = plan_for(layout, spec, num_heads * head_dim)
    if not plan.buckets:
        return _Zeros.apply(q_THD, k_THD, v_THD)
    dtype = q_THD.dtype
    upcast = q_THD.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    q_THD, k_THD, v_THD = (x.float() if upcast else x for x in (q_THD, k_THD, v_THD))
    # A sum is one quick pass and not finite if any element is not; where it merely overflows, nothing is spoiled.
    is_finite = math.isfinite(float(q_THD.detach().sum() + k_THD.detach().sum() + v_THD.detach().sum()))
    attend = _attend if is_finite else _attend_around_spoiled_rows
    query_rows = [bucket.num_sequences * bucket.num_queries for bucket in plan.buckets]
    key_rows = [bucket.num_sequences * bucket.num_keys for bucket in plan.buckets]
    q_NHD = _pieces(plan.queries(q_THD), query_rows)
    k_NHD, v_NHD = (_pieces(plan.keys(x), key_rows) for x in (k_THD, v_THD))
    out_NHD = [
        attend(bucket, layout, *qkv, scale=scale, dropout=dropout)
        for bucket, *qkv in zip(plan.buckets, q_NHD, k_NHD, v_NHD, strict=True)
    ]
    return plan.queries.reverse(out_NHD[0] if len(out_NHD) == 1 else torch.cat(out_NHD)).to(dtype)


def _pieces(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Rows of each bucket; `split` of one piece would copy it in its backward."""
    return (x,) if len(sizes) == 1 else x.split(sizes)


def _attend(
    bucket: Bucket, layout: PackedLayout, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: Dropout
) -> Tensor:
    """Attention of one bucket: q [P*Q, H, D], k and v [P*K, H, D] -> [P*Q, H, D]."""
    num_heads, head_dim = q.shape[1:]
    q_PHQD = q.view(bucket.num_sequences, bucket.num_queries, num_heads, head_dim).transpose(1, 2)
    k_PHKD = k.view(bucket.num_sequences, bucket.num_keys, num_heads, head_dim).transpose(1, 2)
    v_PHKD = v.view(bucket.num_sequences, bucket.num_keys, num_heads, head_dim).transpose(1, 2)
    if dropout.probability == 0.0:
        out_PHQD = scaled_dot_product_attention(
            q_PHQD, k_PHKD, v_PHKD, attn_mask=bucket.mask_P1QK, is_causal=bucket.is_causal, scale=scale
        )
    else:
        weight_PHQK = _weights(bucket, q_PHQD, k_PHKD, scale)
        kept_PHQK = keep_mask(
            dropout,
            layout.product_B[bucket.product_P],
            layout.draw_B[bucket.product_P],
            num_heads,
            bucket.query_offset_PQ,
            bucket.key_offset_PK,
        )
        out_PHQD = (weight_PHQK * kept_PHQK * dropout.scale) @ v_PHKD
    return out_PHQD.transpose(1, 2).reshape(-1, num_heads, head_dim)


def _attend_around_spoiled_rows(
    bucket: Bucket, layout: PackedLayout, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: Dropout
) -> Tensor:
    """As `_attend`, for rows that may be NaN or infinite: a mask alone leaves 0 * NaN in the products with q, k, v."""
    num_heads = q.shape[1]
    spoiled_query, spoiled_key = ~q.isfinite().all(-1), ~(k.isfinite() & v.isfinite()).all(-1)
    out = _attend(
        bucket,
        layout,
        q.masked_fill(spoiled_query[..., None], 0.0),
        *(x.masked_fill(spoiled_key[..., None], 0.0) for x in (k, v)),
        scale=scale,
        dropout=dropout,
    )
    spoiled_PHQK = spoiled_key.view(bucket.num_sequences, bucket.num_keys, num_heads).transpose(1, 2)[:, :, None]
    if bucket.is_causal:
        spoiled_PHQK = spoiled_PHQK & _causal_QK(bucket, q.device)
    if bucket.mask_P1QK is not None:
        spoiled_PHQK = spoiled_PHQK & bucket.mask_P1QK
    sees_spoiled_PQH = spoiled_PHQK.any(-1).expand(-1, -1, bucket.num_queries).transpose(1, 2)
    spoiled = spoiled_query | sees_spoiled_PQH.reshape(-1, num_heads)
    return out.masked_fill(spoiled[..., None], float("nan"))


def _causal_QK(bucket: Bucket, device: torch.device) -> Tensor:
    return torch.ones(bucket.num_queries, bucket.num_keys, dtype=torch.bool, device=device).tril()


def _weights(bucket: Bucket, q_PHQD: Tensor, k_PHKD: Tensor, scale: float) -> Tensor:
    """Softmax weights [P, H, Q, K] under the bucket's mask."""
    score_PHQK = (q_PHQD * scale) @ k_PHKD.transpose(-1, -2)
    if bucket.is_causal:
        score_PHQK = score_PHQK.masked_fill(~_causal_QK(bucket, score_PHQK.device), float("-inf"))
    if bucket.mask_P1QK is not None:
        score_PHQK = score_PHQK.masked_fill(~bucket.mask_P1QK, float("-inf"))
    return score_PHQK.softmax(-1)
