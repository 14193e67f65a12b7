"""presence_contrastive in chunks of queries: the CPU path. Memory is linear in the batch; the backward recomputes.

Shape letters: B local products, C products of the gathered batch, M modalities, D width, P pairs; q queries of a chunk
and k keys of one pair: the products that have both of its modalities.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK_LOGITS = 1 << 20
"""Logits held at a time (4 MiB in float32), so that a chunk stays near the cache and memory never grows with B x C."""


@dataclass
class _Direction:
    """One direction of one pair, its absent products left out."""

    number: int
    """2 * pair + direction."""
    i: int
    j: int
    query_Q: Tensor
    key_K: Tensor
    positive_Q: Tensor
    """Index into key_K of each query's own product."""


class PresenceContrastive(torch.autograd.Function):
    """Saves the log-sum-exp and the loss of each query. Sums and products run in float32 (float64 stays)."""

    @staticmethod
    def forward(
        ctx: Any,
        features_BMD: Tensor,
        keys_CMD: Tensor,
        present_BM: Tensor,
        keys_present_CM: Tensor,
        positive_B: Tensor,
        pairs: tuple[tuple[int, int], ...],
        logit_scale: Tensor,
        weights_BP: Tensor | None,
        loss_weights_BP: Tensor | None,
    ) -> Tensor:
        features, keys, scale = _wide(features_BMD), _wide(keys_CMD), _wide(logit_scale)
        lse_EB = features.new_zeros(2 * len(pairs), features.shape[0])
        loss_EB = torch.zeros_like(lse_EB)
        for part in _directions(present_BM, keys_present_CM, positive_B, pairs):
            keys_KD = keys[:, part.j].index_select(0, part.key_K)
            for chunk in _chunks(part):
                query_q = part.query_Q[chunk]
                logits_qk = _products(features, keys_KD, part, query_q) * _factor(scale, weights_BP, part, query_q)
                lse_q = logits_qk.logsumexp(1)
                lse_EB[part.number, query_q] = lse_q
                loss_EB[part.number, query_q] = lse_q - logits_qk.gather(1, part.positive_Q[chunk, None])[:, 0]
        ctx.save_for_backward(
            features_BMD,
            keys_CMD,
            present_BM,
            keys_present_CM,
            positive_B,
            logit_scale,
            weights_BP,
            loss_weights_BP,
            lse_EB,
            loss_EB,
        )
        ctx.pairs = pairs
        if loss_weights_BP is not None:
            loss_EB = loss_EB * _wide(loss_weights_BP).t().repeat_interleave(2, 0)
        return loss_EB.sum(1).view(len(pairs), 2)

    @staticmethod
    def backward(ctx: Any, grad_P2: Tensor) -> tuple[Tensor | None, ...]:
        (
            features_BMD,
            keys_CMD,
            present_BM,
            keys_present_CM,
            positive_B,
            logit_scale,
            weights_BP,
            loss_weights_BP,
            lse_EB,
            loss_EB,
        ) = ctx.saved_tensors
        features, keys, scale = _wide(features_BMD), _wide(keys_CMD), _wide(logit_scale)
        grad_features, grad_keys = torch.zeros_like(features), torch.zeros_like(keys)
        slope_EB = torch.zeros_like(loss_EB)
        """Gradient to the factor in front of each query's dot products."""
        coefficient_EB = grad_P2.reshape(-1, 1).expand_as(loss_EB)
        if loss_weights_BP is not None:
            coefficient_EB = coefficient_EB * _wide(loss_weights_BP).t().repeat_interleave(2, 0)
        for part in _directions(present_BM, keys_present_CM, positive_B, ctx.pairs):
            keys_KD = keys[:, part.j].index_select(0, part.key_K)
            grad_keys_KD = torch.zeros_like(keys_KD)
            for chunk in _chunks(part):
                query_q = part.query_Q[chunk]
                products_qk = _products(features, keys_KD, part, query_q)
                factor_q1 = _factor(scale, weights_BP, part, query_q)
                grad_qk = (products_qk * factor_q1 - lse_EB[part.number, query_q, None]).exp_()
                grad_qk.scatter_add_(1, part.positive_Q[chunk, None], grad_qk.new_full((len(query_q), 1), -1.0))
                grad_qk *= coefficient_EB[part.number, query_q, None]
                slope_EB[part.number, query_q] = (grad_qk * products_qk).sum(1)
                grad_qk *= factor_q1
                grad_features[query_q, part.i] += grad_qk @ keys_KD
                grad_keys_KD += grad_qk.t() @ features[:, part.i].index_select(0, query_q)
            grad_keys[part.key_K, part.j] += grad_keys_KD
        return (
            grad_features.to(features_BMD.dtype),
            grad_keys.to(keys_CMD.dtype),
            None,
            None,
            None,
            None,
            *_small_gradients(slope_EB, loss_EB, grad_P2, logit_scale, weights_BP, loss_weights_BP),
        )


def _small_gradients(
    slope_EB: Tensor,
    loss_EB: Tensor,
    grad_P2: Tensor,
    logit_scale: Tensor,
    weights_BP: Tensor | None,
    loss_weights_BP: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients to the logit scale and to both weights, from per-query sums [E = 2P, B]."""
    num_pairs, num_products = len(grad_P2), slope_EB.shape[1]
    slope_PB = slope_EB.view(num_pairs, 2, num_products).sum(1)
    grad_weights = grad_loss_weights = None
    if weights_BP is None:
        grad_scale = slope_PB.sum()
    else:
        grad_scale = (slope_PB * _wide(weights_BP).t()).sum()
        grad_weights = (slope_PB * _wide(logit_scale)).t().to(weights_BP.dtype)
    if loss_weights_BP is not None:
        weighted_PB = (loss_EB.view(num_pairs, 2, num_products) * grad_P2[:, :, None]).sum(1)
        grad_loss_weights = weighted_PB.t().to(loss_weights_BP.dtype)
    return grad_scale.reshape(logit_scale.shape).to(logit_scale.dtype), grad_weights, grad_loss_weights


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _directions(
    present_BM: Tensor, keys_present_CM: Tensor, positive_B: Tensor, pairs: tuple[tuple[int, int], ...]
) -> Iterator[_Direction]:
    for p, (i, j) in enumerate(pairs):
        query_Q = (present_BM[:, i] & present_BM[:, j]).nonzero()[:, 0]
        if len(query_Q) == 0:
            continue
        key_C = keys_present_CM[:, i] & keys_present_CM[:, j]
        key_K = key_C.nonzero()[:, 0]
        positive_Q = (key_C.long().cumsum(0) - 1)[positive_B[query_Q]]
        yield _Direction(2 * p, i, j, query_Q, key_K, positive_Q)
        yield _Direction(2 * p + 1, j, i, query_Q, key_K, positive_Q)


def _chunks(part: _Direction) -> Iterator[slice]:
    step = max(16, _CHUNK_LOGITS // max(1, len(part.key_K)))
    for start in range(0, len(part.query_Q), step):
        yield slice(start, start + step)


def _products(features_BMD: Tensor, keys_KD: Tensor, part: _Direction, query_q: Tensor) -> Tensor:
    return features_BMD[:, part.i].index_select(0, query_q) @ keys_KD.t()


def _factor(scale: Tensor, weights_BP: Tensor | None, part: _Direction, query_q: Tensor) -> Tensor:
    """What multiplies each query's dot products: [q, 1], or [1, 1] without weights."""
    if weights_BP is None:
        return scale.view(1, 1)
    return scale * _wide(weights_BP[query_q, part.number // 2])[:, None]
