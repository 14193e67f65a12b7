"""The two-pass gradient cache: a contrastive pool that is the whole global batch under accumulation (DESIGN 3.4).

First pass: features of all micro-batches, without a graph. `cached_gradients` evaluates the loss on all of them at once
and keeps its gradients, a few numbers a product. Second pass: each micro-batch is computed again with a graph, and
`CachedGradients.surrogate` of it has exactly its share of those gradients. (Gao et al., "Scaling deep contrastive
learning batch size under memory limited setup", RepL4NLP 2021.)

Shape letters: B products of this rank over all its micro-batches, C of the gathered global batch, M modalities,
D width, P pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.kernels.presence_contrastive import presence_contrastive

Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]
"""(features_BMD, present_BM) -> (features_CMD, present_CM, this rank's first row), with gradient to the features."""


@dataclass(frozen=True, eq=False)
class CachedGradients:
    """Losses of all micro-batches, and the gradients of sum(losses_P2 * coefficient_P2) to what they depend on."""

    losses_P2: Tensor
    """Local sums, float32 (float64 for float64 features), without a graph."""
    features_BMD: Tensor
    logit_scale: Tensor
    weights_BP: Tensor | None
    loss_weights_BP: Tensor | None

    def surrogate(
        self,
        rows: slice,
        features_BMD: Tensor,
        logit_scale: Tensor | None = None,
        weights_BP: Tensor | None = None,
        loss_weights_BP: Tensor | None = None,
    ) -> Tensor:
        """A scalar with the cached gradients; its own value means nothing, `losses_P2` holds the loss.

        `rows` are the micro-batch's products among the B; the tensors are its own, recomputed with a graph (the same
        values as in the first pass). Pass `logit_scale` with one micro-batch only: its gradient belongs to all of them.
        """
        pairs = [(features_BMD, self.features_BMD[rows])]
        for name, value in (("weights_BP", weights_BP), ("loss_weights_BP", loss_weights_BP)):
            cached = getattr(self, name)
            if (value is None) != (cached is None):
                raise ValueError(f"{name} must be given in both passes or in neither")
            if value is not None:
                pairs.append((value, cached[rows]))
        if logit_scale is not None:
            pairs.append((logit_scale, self.logit_scale))
        for value, gradient in pairs:
            if value.shape != gradient.shape:
                raise ValueError(f"rows {rows} hold {list(gradient.shape)}, the micro-batch {list(value.shape)}")
        return torch.stack([(value.to(self.losses_P2.dtype) * gradient).sum() for value, gradient in pairs]).sum()


def cached_gradients(
    features_BMD: Tensor,
    present_BM: Tensor,
    pairs: list[tuple[int, int]] | tuple[tuple[int, int], ...],
    logit_scale: Tensor,
    coefficient_P2: Tensor,
    *,
    gather: Gather | None = None,
    weights_BP: Tensor | None = None,
    loss_weights_BP: Tensor | None = None,
    path: str | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> CachedGradients:
    """The loss of all of this rank's micro-batches against the global batch, and its gradients.

    Arguments as for `presence_contrastive`, concatenated over micro-batches; graphs they may carry are ignored.
    `coefficient_P2` is the gradient of the step's total loss to each local sum (weight of the loss over global count).
    `gather` is a collective in both directions, so every rank must call this, with zero products too; None: one rank.
    """

    def leaf(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().requires_grad_()

    features, scale, weights, loss_weights = map(leaf, (features_BMD, logit_scale, weights_BP, loss_weights_BP))
    assert features is not None
    assert scale is not None
    with torch.enable_grad():
        keys, keys_present_CM, first_row = gather(features, present_BM) if gather else (features, present_BM, 0)
        positive_B = torch.arange(features.shape[0], device=features.device) + first_row
        losses_P2 = presence_contrastive(
            features, keys, present_BM, keys_present_CM, positive_B, pairs, scale, weights, loss_weights, path, groups
        )
        inputs = [value for value in (features, scale, weights, loss_weights) if value is not None]
        grads = list(torch.autograd.grad(losses_P2, inputs, coefficient_P2.to(losses_P2.dtype)))
    return CachedGradients(
        losses_P2=losses_P2.detach(),
        features_BMD=grads.pop(0),
        logit_scale=grads.pop(0),
        weights_BP=None if weights is None else grads.pop(0),
        loss_weights_BP=None if loss_weights is None else grads.pop(0),
    )
