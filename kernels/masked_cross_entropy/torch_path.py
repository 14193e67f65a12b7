"""Vocabulary loss in chunks of rows: the logits of one chunk at a time, computed again in the backward.

The matrix products are the library's own and dominate, so there is no Triton kernel. Why not torch's chunked
`linear_cross_entropy` or Liger's: docs/kernels.md. Shape letters: K masked rows, k those of a chunk, V vocabulary, D
width.
"""

from typing import Any

import torch
from torch import Tensor


class MaskedCrossEntropy(torch.autograd.Function):
    """Saves a log-sum-exp and a loss per row. Weight gradients are summed over chunks in float32 (float64 stays)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        target_K: Tensor,
        logit_weight_K: Tensor,
        loss_weight_K: Tensor,
        chunk_rows: int,
    ) -> Tensor:
        lse_K, loss_K = torch.zeros_like(logit_weight_K), torch.zeros_like(logit_weight_K)
        for rows in _chunks(len(target_K), chunk_rows):
            logits_kV = _logits(hidden_KD[rows], weight_VD, bias_V).mul_(logit_weight_K[rows, None])
            lse_K[rows] = torch.logsumexp(logits_kV, dim=1)
            loss_K[rows] = lse_K[rows] - logits_kV.gather(1, target_K[rows, None])[:, 0]
        ctx.save_for_backward(hidden_KD, weight_VD, bias_V, target_K, logit_weight_K, loss_weight_K, lse_K, loss_K)
        ctx.chunk_rows = chunk_rows
        return (loss_K * loss_weight_K).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KD, weight_VD, bias_V, target_K, logit_weight_K, loss_weight_K, lse_K, loss_K = ctx.saved_tensors
        need_hidden, need_weight, need_bias, _, need_logit_weight, need_loss_weight, _ = ctx.needs_input_grad
        grad_hidden_KD = torch.zeros_like(hidden_KD) if need_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=lse_K.dtype) if need_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=lse_K.dtype) if need_bias else None
        grad_logit_weight_K = torch.zeros_like(logit_weight_K) if need_logit_weight else None
        for rows in _chunks(len(target_K), ctx.chunk_rows):
            logits_kV = _logits(hidden_KD[rows], weight_VD, bias_V)
            grad_kV = torch.exp(logits_kV * logit_weight_K[rows, None] - lse_K[rows, None])
            grad_kV.scatter_add_(1, target_K[rows, None], grad_kV.new_full((len(grad_kV), 1), -1.0))
            grad_kV *= (loss_weight_K[rows] * grad)[:, None]
            if grad_logit_weight_K is not None:
                grad_logit_weight_K[rows] = (grad_kV * logits_kV).sum(1)
            grad_kV *= logit_weight_K[rows, None]
            if grad_bias_V is not None:
                grad_bias_V += grad_kV.sum(0)
            grad_kV = grad_kV.to(hidden_KD.dtype)
            if grad_hidden_KD is not None:
                torch.mm(grad_kV, weight_VD, out=grad_hidden_KD[rows])
            if grad_weight_VD is not None:
                grad_weight_VD += grad_kV.t() @ hidden_KD[rows]
        return (
            grad_hidden_KD,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            grad_logit_weight_K,
            loss_K * grad if need_loss_weight else None,
            None,
        )


def masked_cross_entropy_torch(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    target_K: Tensor,
    logit_weight_K: Tensor | None,
    loss_weight_K: Tensor | None,
    chunk_rows: int,
) -> Tensor:
    """See `m5ds.kernels.masked_cross_entropy.masked_cross_entropy`."""
    wide = _wide(hidden_KD[:0]).dtype
    ones_K = torch.ones_like(target_K, dtype=wide)
    weights = [ones_K if value is None else value.to(wide) for value in (logit_weight_K, loss_weight_K)]
    total: Tensor = MaskedCrossEntropy.apply(hidden_KD, weight_VD, bias_V, target_K, *weights, chunk_rows)
    return total


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _logits(hidden_kD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
    """float32 logits [k, V]. CUDA keeps the accumulator; a CPU's fast half-precision product rounds its result once."""
    if hidden_kD.is_cuda and hidden_kD.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(hidden_kD, weight_VD.t(), out_dtype=torch.float32) + bias_V
    return _wide(hidden_kD @ weight_VD.t()) + bias_V


def _chunks(num_rows: int, chunk_rows: int) -> list[slice]:
    return [slice(start, min(start + chunk_rows, num_rows)) for start in range(0, num_rows, chunk_rows)]
