"""How an objective sees the whole global batch: products of all ranks and of all accumulation steps (DESIGN 3.4).

One micro-batch a step: `Gathered` evaluates the loss on the keys of all ranks. With accumulation there are two passes
over the step's micro-batches. The first, without a graph, leaves every micro-batch's inputs in a `Collected`, whose
`close` evaluates the loss on all of them against all ranks' and keeps the gradients. In the second, with a graph, a
`Replayed` gives every micro-batch its share of those gradients. Masks and dropout are keyed by product, so that both
passes see the same features. A pool serves one optimizer step; an objective calls whichever it is given. (Gao et al.,
"Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP 2021.)

B products of one micro-batch, M modalities, R the projection's width, K terms.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Gather(Protocol):
    """Products of all ranks, in rank order. Every call is collective."""

    def __call__(self, features_BMR: Tensor, present_BM: Tensor) -> tuple[Tensor, Tensor, int]:
        """(features_CMR, present_CM, the first row of this rank's), with gradient to the features of all ranks."""

    def integers(self, values_B: Tensor) -> Tensor:
        """int64 [C] of all ranks' int64 [B]."""


class PoolInputs(NamedTuple):
    """What a loss over the global batch depends on."""

    features_BMR: Tensor
    present_BM: Tensor
    scalars: Tensor
    """The loss's own numbers (a logit scale, a bias), fp32."""
    logit_weight_BK: Tensor | None
    loss_weight_BK: Tensor | None
    group_B: Tensor | None = None
    """int64: products of one group are never each other's negatives; None: every product is alone in its."""


DIFFERENTIABLE = ("features_BMR", "logit_weight_BK", "loss_weight_BK", "scalars")


class GlobalLoss(Protocol):
    """A loss whose keys are the global batch's products."""

    def sums(self, inputs: PoolInputs, gather: Gather) -> Tensor:
        """Local sums, fp32 [K], with a graph. Collective in both directions."""


class Pool(Protocol):
    """What an objective calls in its forward."""

    def __call__(self, inputs: PoolInputs, coefficient_K: Tensor) -> Tensor:
        """Local sums, fp32 [K]; over a step's micro-batches they add up to the loss of the global batch.

        `coefficient_K` is what the total loss multiplies each sum with; it must not depend on the micro-batch.
        """


class LocalGather:
    """The gather of a single rank."""

    def __call__(self, features_BMR: Tensor, present_BM: Tensor) -> tuple[Tensor, Tensor, int]:
        return features_BMR, present_BM, 0

    def integers(self, values_B: Tensor) -> Tensor:
        return values_B


class Gathered:
    """The pool of a step with one micro-batch a rank."""

    def __init__(self, loss: GlobalLoss, gather: Gather | None) -> None:
        self._loss, self._gather = loss, gather or LocalGather()

    def __call__(self, inputs: PoolInputs, coefficient_K: Tensor) -> Tensor:
        return self._loss.sums(inputs, self._gather)


class Collected:
    """The first pass of a step with accumulation. Every rank calls it for all micro-batches, then `close`."""

    def __init__(self, loss: GlobalLoss, gather: Gather | None) -> None:
        """`gather` collects the features of all micro-batches of all ranks; None: one rank."""
        self._loss, self._gather = loss, gather or LocalGather()
        self._inputs: list[PoolInputs] = []
        self._coefficient_K: Tensor | None = None

    def __call__(self, inputs: PoolInputs, coefficient_K: Tensor) -> Tensor:
        """Zeros: the sums come in the second pass."""
        self._inputs.append(PoolInputs._make(None if value is None else value.detach() for value in inputs))
        self._coefficient_K = coefficient_K.detach()
        return torch.zeros_like(self._coefficient_K)

    def close(self) -> "Replayed":
        """The pool of the second pass. Collective."""
        assert self._coefficient_K is not None, "no micro-batch was collected"

        def joined(name: str) -> Tensor | None:
            values = [getattr(inputs, name) for inputs in self._inputs]
            return None if values[0] is None else torch.cat(values)

        scalars = self._inputs[0].scalars
        whole = {name: scalars if name == "scalars" else joined(name) for name in PoolInputs._fields}
        inputs = PoolInputs(**whole)  # type: ignore[arg-type]
        leaves = {name: value.requires_grad_() for name in DIFFERENTIABLE if (value := whole[name]) is not None}
        with torch.enable_grad():
            sums_K = self._loss.sums(inputs, self._gather)
            found = torch.autograd.grad(sums_K, list(leaves.values()), self._coefficient_K.to(sums_K.dtype))
        return Replayed(sums_K.detach(), dict(zip(leaves, found, strict=True)))


class Replayed:
    """The second pass of a step with accumulation: the micro-batches come in the order of the first."""

    def __init__(self, sums_K: Tensor, gradients: dict[str, Tensor]) -> None:
        """The step's sums, and the gradients of sum(sums_K * coefficient_K) by the name of the input."""
        self._sums_K, self._gradients = sums_K, gradients
        self._next_row: int | None = None
        """The first product of the micro-batch that comes next; None before the first call."""

    def __call__(self, inputs: PoolInputs, coefficient_K: Tensor) -> Tensor:
        """The sums of all micro-batches at once for the first one, and zeros for the others.

        ValueError for inputs that are not those of the first pass.
        """
        is_first, start = self._next_row is None, self._next_row or 0
        rows = slice(start, start + inputs.features_BMR.shape[0])
        self._next_row = rows.stop
        values = [getattr(inputs, name) for name in DIFFERENTIABLE]
        gradients = [self._gradient(name, rows, is_first) for name in DIFFERENTIABLE]
        for name, value, gradient in zip(DIFFERENTIABLE, values, gradients, strict=True):
            if (value is None) != (gradient is None):
                raise ValueError(f"{name} must be given in both passes or in neither")
            if gradient is not None and value.shape != gradient.shape:
                raise ValueError(f"rows {rows} hold {list(gradient.shape)}, the micro-batch {list(value.shape)}")
        sums_K = self._sums_K if is_first else torch.zeros_like(self._sums_K)
        return _Replay.apply(sums_K, coefficient_K.detach(), tuple(gradients), *values)

    def _gradient(self, name: str, rows: slice, is_first: bool) -> Tensor | None:
        """The micro-batch's share; the first one bears what belongs to no product."""
        gradient = self._gradients.get(name)
        if gradient is None or name != "scalars":
            return None if gradient is None else gradient[rows]
        return gradient if is_first else torch.zeros_like(gradient)


class _Replay(torch.autograd.Function):
    """Given values whose gradients are already known, up to the factor by which the total is scaled (ranks, fp16)."""

    @staticmethod
    def forward(
        ctx: Any, sums_K: Tensor, coefficient_K: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None
    ) -> Tensor:
        ctx.coefficient_K, ctx.gradients = coefficient_K, gradients
        ctx.dtypes = [None if value is None else value.dtype for value in inputs]
        return sums_K.clone()

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor | None, ...]:
        square = (ctx.coefficient_K * ctx.coefficient_K).sum()
        factor = torch.where(square > 0, (grad_K * ctx.coefficient_K).sum() / square, square)
        scaled = [
            None if gradient is None or dtype is None else (factor * gradient).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        return None, None, None, *scaled
