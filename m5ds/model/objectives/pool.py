"""The contrastive pool of an optimizer step with accumulation: the whole global batch, in two passes (DESIGN 3.4).

First pass, without a graph: every micro-batch's forward leaves its features here. `close` evaluates the loss on all of
them against all ranks' and keeps the gradients (m5ds.kernels.presence_contrastive.gradient_cache). Second pass, with a
graph: every micro-batch takes its share of those gradients. Masks and dropout are keyed by product, so that both passes
see the same features. A pool serves one optimizer step.

B products of one micro-batch, M modalities, R the projection's width, P pairs.
"""

from typing import Any

import torch
from torch import Tensor

from m5ds.kernels.presence_contrastive.gradient_cache import CachedGradients, Gather, cached_gradients


class ContrastivePool:
    """Passed to the model as `gather`. Every rank makes the same calls: all micro-batches, `close`, all again."""

    def __init__(self, pairs: tuple[tuple[int, int], ...], gather: Gather | None) -> None:
        """`pairs` are modality indices, `gather` collects the features of all ranks' products; None: one rank."""
        self._pairs, self._gather = pairs, gather
        self._collected: list[tuple[Tensor | None, ...]] = []
        self._cached: CachedGradients | None = None
        self._next_row: int | None = None
        """Of the second pass: the first product of the micro-batch that comes next; None before its first call."""

    @property
    def collecting(self) -> bool:
        """True in the first pass, which needs features and harmony weights only."""
        return self._cached is None

    def close(self) -> None:
        """End the first pass. Collective."""
        features, present, weights, loss_weights = (
            None if column[0] is None else torch.cat([value for value in column if value is not None])
            for column in zip(*(part[:4] for part in self._collected), strict=True)
        )
        scale, coefficient_P = self._collected[0][4:]
        assert features is not None and present is not None and scale is not None and coefficient_P is not None
        # A pair's loss is the mean of its two directions.
        self._cached = cached_gradients(
            features,
            present,
            self._pairs,
            scale,
            coefficient_P[:, None].expand(-1, 2) / 2,
            gather=self._gather,
            weights_BP=weights,
            loss_weights_BP=loss_weights,
        )

    def __call__(
        self,
        features_BMR: Tensor,
        present_BM: Tensor,
        logit_scale: Tensor,
        logit_weight_BP: Tensor | None,
        loss_weight_BP: Tensor | None,
        coefficient_P: Tensor,
    ) -> Tensor:
        """Local sums of the loss, fp32 [P]: zeros in the first pass; in the second, those of all micro-batches at once
        for the first one and zeros for the others.

        `coefficient_P` is what the total loss multiplies each sum with; it must not depend on the micro-batch.
        """
        inputs = (features_BMR, logit_weight_BP, loss_weight_BP, logit_scale)
        if self._cached is None:
            kept = (features_BMR, present_BM, logit_weight_BP, loss_weight_BP, logit_scale, coefficient_P)
            self._collected.append(tuple(None if value is None else value.detach() for value in kept))
            return torch.zeros(len(self._pairs), device=features_BMR.device)
        cached, is_first, start = self._cached, self._next_row is None, self._next_row or 0
        rows = slice(start, start + features_BMR.shape[0])
        self._next_row = rows.stop
        sums_P = cached.losses_P2.mean(1) if is_first else torch.zeros_like(cached.losses_P2[:, 0])
        gradients = (
            cached.features_BMD[rows],
            None if cached.weights_BP is None else cached.weights_BP[rows],
            None if cached.loss_weights_BP is None else cached.loss_weights_BP[rows],
            cached.logit_scale if is_first else torch.zeros_like(cached.logit_scale),
        )
        return _Replayed.apply(sums_P, coefficient_P.detach(), gradients, *inputs)


class _Replayed(torch.autograd.Function):
    """Given values whose gradients are already known, up to the factor by which the total is scaled (ranks, fp16)."""

    @staticmethod
    def forward(
        ctx: Any, sums_P: Tensor, coefficient_P: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None
    ) -> Tensor:
        ctx.coefficient_P, ctx.gradients = coefficient_P, gradients
        ctx.dtypes = [None if value is None else value.dtype for value in inputs]
        return sums_P.clone()

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        square = (ctx.coefficient_P * ctx.coefficient_P).sum()
        factor = torch.where(square > 0, (grad_P * ctx.coefficient_P).sum() / square, square)
        scaled = [
            None if gradient is None or dtype is None else (factor * gradient).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        return None, None, None, *scaled
