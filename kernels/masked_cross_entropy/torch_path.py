"""Vocabulary loss in chunks of rows: the logits of one chunk at a time, computed again in the backward.

The matrix products are the library's own and dominate, so there is no Triton kernel. Why not torch's chunked
`linear_cross_entropy` or Liger's: docs/kernels.md.
"""

from typing import Any

import torch
from torch import Tensor


class MaskedCrossEntropy(torch.autograd.Function):
    """Saves one log-sum-exp per row. Weight gradients are summed over chunks in float32 (float64 stays)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_K: Tensor, chunk_rows: int
    ) -> Tensor:
        parts, total = [], _wide(hidden_KD.new_zeros(()))
        for rows in _chunks(len(target_K), chunk_rows):
            logits_kV = _logits(hidden_KD[rows], weight_VD, bias_V)
            lse_k = torch.logsumexp(logits_kV, dim=1)
            total = total + (lse_k - logits_kV.gather(1, target_K[rows, None])[:, 0]).sum()
            parts.append(lse_k)
        lse_K = torch.cat(parts) if parts else total.new_zeros(0)
        ctx.save_for_backward(hidden_KD, weight_VD, bias_V, target_K, lse_K)
        ctx.chunk_rows = chunk_rows
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KD, weight_VD, bias_V, target_K, lse_K = ctx.saved_tensors
        dtype = hidden_KD.dtype
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden_KD = torch.zeros_like(hidden_KD) if need_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=lse_K.dtype) if need_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=lse_K.dtype) if need_bias else None
        for rows in _chunks(len(target_K), ctx.chunk_rows):
            grad_logits_kV = (_logits(hidden_KD[rows], weight_VD, bias_V) - lse_K[rows, None]).exp_()
            grad_logits_kV.scatter_add_(
                1, target_K[rows, None], grad_logits_kV.new_full((rows.stop - rows.start, 1), -1.0)
            )
            grad_logits_kV *= grad
            if grad_bias_V is not None:
                grad_bias_V += grad_logits_kV.sum(0)
            grad_logits_kV = grad_logits_kV.to(dtype)
            if grad_hidden_KD is not None:
                torch.mm(grad_logits_kV, weight_VD, out=grad_hidden_KD[rows])
            if grad_weight_VD is not None:
                grad_weight_VD += grad_logits_kV.t() @ hidden_KD[rows]
        return (
            grad_hidden_KD,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
        )


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _logits(hidden_kD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
    """float32 logits [k, V]. CUDA keeps the accumulator; a CPU's fast half-precision product rounds its result once."""
    if hidden_kD.is_cuda and hidden_kD.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(hidden_kD, weight_VD.t(), out_dtype=torch.float32) + bias_V
    return _wide(hidden_kD @ weight_VD.t()) + bias_V


def _chunks(num_rows: int, chunk_rows: int) -> list[slice]:
    return [slice(start, min(start + chunk_rows, num_rows)) for start in range(0, num_rows, chunk_rows)]
