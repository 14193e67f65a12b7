"""The one measure by which tests compare tensors with a reference: relative error with a floor from the problem.

A value that is zero by definition comes out as rounding, 0 on one CPU and 1e-17 on the next, so its own size says
nothing about how wrong it is. What a computation rounds follows its largest values; the floor is therefore a few
roundings of those.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

ROUNDINGS = 4
"""Roundings of the problem's size that a small value may carry; a whole model's gradients carry more."""


def relative_errors(
    actual: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor | None],
    tolerance: float,
    scale: float,
    roundings: int,
) -> dict[str, float]:
    """By name: root mean square of `actual - expected` over that of `expected`, in float64.

    All of one call's outputs and gradients go in together: the largest norm among them, or `scale` where that is
    larger, is the problem's size. An `expected` counts as no smaller than what makes `tolerance` of it `roundings`
    roundings of that size, in the precision of the computation (float32 where `actual` is half). A NaN, a missing
    tensor, and anything in place of zeros where all is zero, are infinitely wrong.
    """
    assert actual.keys() == expected.keys(), f"{sorted(actual)} compared with {sorted(expected)}"
    size = {name: _norm(value) for name, value in expected.items()}
    problem = max([scale, *size.values()])
    share = roundings / tolerance
    return {name: _error(actual[name], expected[name], size[name], problem, share) for name in expected}


def _error(actual: Tensor | None, expected: Tensor | None, size: float, problem: float, share: float) -> float:
    if actual is None or expected is None or actual.shape != expected.shape:
        return float("inf")
    difference = _norm(actual.double() - expected.double())
    epsilon = torch.finfo(torch.promote_types(actual.dtype, torch.float32)).eps
    size = max(size, problem * min(1.0, share * epsilon))
    if difference == 0:
        return 0.0
    return difference / size if size and difference == difference else float("inf")


def _norm(value: Tensor | None) -> float:
    return 0.0 if value is None else value.detach().double().norm().item()


def assert_close(
    actual: Mapping[str, Tensor | None] | Tensor,
    expected: Mapping[str, Tensor | None] | Tensor,
    tolerance: float,
    scale: float = 0.0,
    roundings: int = ROUNDINGS,
) -> None:
    """Every relative error below `tolerance`; all of them in the message. Arguments as in `relative_errors`."""
    pair = [side if isinstance(side, Mapping) else {"value": side} for side in (actual, expected)]
    errors = relative_errors(*pair, tolerance, scale, roundings)
    assert all(error < tolerance for error in errors.values()), errors
