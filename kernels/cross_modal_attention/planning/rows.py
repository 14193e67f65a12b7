"""Moving packed rows into padded groups and back with gathers only: no scatter, so the backward is deterministic.

`index_select` in the forward and the backward: `x[idx]` would scatter in its backward, 3-8 times slower (FINDINGS.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Gather:
    """Output row n is input row `index_N[n]`, or zero for n in `holes` (where `index_N` is 0)."""

    index_N: Tensor
    holes: Tensor | None

    @classmethod
    def build(cls, index_N: np.ndarray, device: torch.device) -> "Gather":
        """From int64 indices in which -1 means a row of zeros."""
        holes = np.flatnonzero(index_N < 0)
        as_tensor = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
        return cls(as_tensor(np.maximum(index_N, 0)), as_tensor(holes) if holes.size else None)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, ...] -> [N, ...]."""
        if x.shape[0] == 0:
            return x.new_zeros(self.index_N.shape[0], *x.shape[1:])
        out = x.index_select(0, self.index_N)
        return out if self.holes is None else out.index_fill_(0, self.holes, 0)


@dataclass(frozen=True)
class RowMap:
    """A gather and its transpose: the sum of `inverses`, each of which reads every gathered row at most once."""

    forward: Gather
    inverses: tuple[Gather, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return _MapRows.apply(x, self)

    def reverse(self, x: Tensor) -> Tensor:
        """The transpose, with `forward` as its gradient; only where each row was gathered at most once."""
        assert len(self.inverses) == 1
        return _MapRows.apply(x, RowMap(self.inverses[0], (self.forward,)))


class _MapRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, row_map: RowMap) -> Tensor:
        ctx.row_map = row_map
        return row_map.forward(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        first, *others = ctx.row_map.inverses
        total = first(grad)
        for inverse in others:
            total += inverse(grad)
        return total, None
