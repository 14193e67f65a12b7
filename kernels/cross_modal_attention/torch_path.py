"""The CPU path of cross_modal_attention: few SDPA calls over buckets of near-equal sequences (plan.py).

Shape letters: T packed rows, N rows of the gathered buffer, H heads, D head dim, P sequences, Q and K padded rows.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from m5ds.kernels.cross_modal_attention.dropout import Dropout, keep_mask
from m5ds.kernels.cross_modal_attention.plan import Bucket, plan_for
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec
from m5ds.kernels.layout import PackedLayout


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
    """Same contract as `cross_modal_attention_reference`. bf16 and fp16 are computed in fp32 on a CPU (FINDINGS.md)."""
    num_heads, head_dim = q_THD.shape[1:]
    plan = plan_for(layout, spec, num_heads * head_dim)
    if not plan.buckets:
        return _Zeros.apply(q_THD, k_THD, v_THD)
    dtype = q_THD.dtype
    upcast = q_THD.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    q_THD, k_THD, v_THD = (x.float() if upcast else x for x in (q_THD, k_THD, v_THD))
    query_rows = [bucket.num_sequences * bucket.num_queries for bucket in plan.buckets]
    key_rows = [bucket.num_sequences * bucket.num_keys for bucket in plan.buckets]
    q_NHD = _pieces(plan.queries(q_THD), query_rows)
    k_NHD, v_NHD = (_pieces(plan.keys(x), key_rows) for x in (k_THD, v_THD))
    out_NHD = [
        _attend(bucket, layout, *qkv, scale=scale, dropout=dropout)
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


def _weights(bucket: Bucket, q_PHQD: Tensor, k_PHKD: Tensor, scale: float) -> Tensor:
    """Softmax weights [P, H, Q, K] under the bucket's mask."""
    score_PHQK = (q_PHQD * scale) @ k_PHKD.transpose(-1, -2)
    if bucket.is_causal:
        visible_QK = torch.ones(score_PHQK.shape[-2:], dtype=torch.bool, device=score_PHQK.device).tril()
        score_PHQK = score_PHQK.masked_fill(~visible_QK, float("-inf"))
    if bucket.mask_P1QK is not None:
        score_PHQK = score_PHQK.masked_fill(~bucket.mask_P1QK, float("-inf"))
    return score_PHQK.softmax(-1)
