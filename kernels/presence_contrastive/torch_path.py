"""Each query's InfoNCE in chunks of queries: the CPU path. Memory is linear in the batch; the backward recomputes.

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

    place: tuple[int, int]
    """Pair and direction: where its losses lie in loss_P2B."""
    i: int
    j: int
    query_Q: Tensor
    key_K: Tensor
    positive_Q: Tensor
    """Index into key_K of each query's own product."""


class QueryLosses(torch.autograd.Function):
    """loss_P2B, zero for queries that lack a modality of the pair. At least float32.

    Saves two numbers a query: the log-sum-exp, and the share that keys other than the positive have in it, summed
    without the positive. That share, not 1 - p, is the positive's gradient: exactly 0 where there is no other key. It
    is taken of the log-sum-exp as rounded, so that a query's gradients to its logits add up to 0; where features are
    nearly alike (a model just initialised) anything else would drown the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        groups: tuple[Tensor, Tensor] | None,
        features_BMD: Tensor,
        keys_CMD: Tensor,
        present_BM: Tensor,
        keys_present_CM: Tensor,
        positive_B: Tensor,
        pairs: tuple[tuple[int, int], ...],
        factor_P2B: Tensor,
    ) -> Tensor:
        features, keys = _wide(features_BMD), _wide(keys_CMD)
        loss_P2B, lse_P2B, rest_P2B = (torch.zeros_like(factor_P2B) for _ in range(3))
        for part in _directions(present_BM, keys_present_CM, positive_B, pairs):
            keys_kD = keys[:, part.j].index_select(0, part.key_K)
            for chunk in _chunks(part):
                query_q = part.query_Q[chunk]
                logits_qk = _products(features, keys_kD, part, query_q) * factor_P2B[part.place][query_q, None]
                positive_q1 = part.positive_Q[chunk, None]
                _leave_out(logits_qk, groups, part, chunk)
                max_q, own_q = logits_qk.amax(1), logits_qk.gather(1, positive_q1)[:, 0]
                others_q = logits_qk.sub_(max_q[:, None]).exp_().scatter_(1, positive_q1, 0.0).sum(1)
                log_q = (others_q + (own_q - max_q).exp()).log()
                lse_q = max_q + log_q
                lse_P2B[part.place][query_q] = lse_q
                rest_P2B[part.place][query_q] = others_q * (max_q - lse_q).exp()
                loss_P2B[part.place][query_q] = max_q - own_q + log_q
        tensors = (features_BMD, keys_CMD, present_BM, keys_present_CM, positive_B, factor_P2B, lse_P2B, rest_P2B)
        ctx.save_for_backward(*tensors)
        ctx.pairs, ctx.groups = pairs, groups
        return loss_P2B

    @staticmethod
    def backward(ctx: Any, grad_P2B: Tensor) -> tuple[Tensor | None, ...]:
        features_BMD, keys_CMD, *masks, factor_P2B, lse_P2B, rest_P2B = ctx.saved_tensors
        features, keys = _wide(features_BMD), _wide(keys_CMD)
        grad_features, grad_keys = torch.zeros_like(features), torch.zeros_like(keys)
        grad_factor_P2B = torch.zeros_like(factor_P2B)
        for part in _directions(*masks, ctx.pairs):
            keys_kD = keys[:, part.j].index_select(0, part.key_K)
            grad_keys_kD = torch.zeros_like(keys_kD)
            for chunk in _chunks(part):
                query_q = part.query_Q[chunk]
                products_qk = _products(features, keys_kD, part, query_q)
                factor_q1 = factor_P2B[part.place][query_q, None]
                logits_qk = products_qk * factor_q1
                _leave_out(logits_qk, ctx.groups, part, chunk)
                grad_qk = logits_qk.sub_(lse_P2B[part.place][query_q, None]).exp_()
                grad_qk.scatter_(1, part.positive_Q[chunk, None], -rest_P2B[part.place][query_q, None])
                grad_qk *= grad_P2B[part.place][query_q, None]
                grad_factor_P2B[part.place][query_q] = (grad_qk * products_qk).sum(1)
                grad_qk *= factor_q1
                grad_features[query_q, part.i] += grad_qk @ keys_kD
                grad_keys_kD += grad_qk.t() @ features[:, part.i].index_select(0, query_q)
            grad_keys[part.key_K, part.j] += grad_keys_kD
        grads = grad_features.to(features_BMD.dtype), grad_keys.to(keys_CMD.dtype)
        return None, *grads, None, None, None, None, grad_factor_P2B


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
        assert bool(key_C[positive_B[query_Q]].all()), "a query's own product lacks a modality among the keys"
        positive_Q = (key_C.long().cumsum(0) - 1)[positive_B[query_Q]]
        yield _Direction((p, 0), i, j, query_Q, key_K, positive_Q)
        yield _Direction((p, 1), j, i, query_Q, key_K, positive_Q)


def _chunks(part: _Direction) -> Iterator[slice]:
    step = max(16, _CHUNK_LOGITS // max(1, len(part.key_K)))
    for start in range(0, len(part.query_Q), step):
        yield slice(start, start + step)


def _leave_out(logits_qk: Tensor, groups: tuple[Tensor, Tensor] | None, part: _Direction, chunk: slice) -> None:
    """In place: no logit for keys of the query's own group, but for its positive."""
    if groups is None:
        return
    is_out_qk = groups[0][part.query_Q[chunk], None] == groups[1][part.key_K]
    logits_qk.masked_fill_(is_out_qk.scatter_(1, part.positive_Q[chunk, None], False), float("-inf"))


def _products(features_BMD: Tensor, keys_kD: Tensor, part: _Direction, query_q: Tensor) -> Tensor:
    return features_BMD[:, part.i].index_select(0, query_q) @ keys_kD.t()
