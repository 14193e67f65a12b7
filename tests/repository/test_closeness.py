"""The comparison that other tests rely on: rounding of a zero passes, a wrong value of the problem's size never."""

import pytest
import torch
from closeness import ROUNDINGS, assert_close, relative_errors

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]


def problem(dtype: torch.dtype, scale: float) -> dict[str, torch.Tensor]:
    """An output of norm `scale` and a gradient that is zero by definition."""
    out = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"out": (out * scale / out.norm()).to(dtype), "zero": torch.zeros(64, dtype=dtype)}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_rounding_in_place_of_zero_passes_at_every_scale(dtype, tolerance, scale) -> None:
    expected = problem(torch.float64, scale)
    rounded = torch.full((64,), scale / 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    assert_close({"out": expected["out"].to(dtype), "zero": rounded.to(dtype)}, expected, tolerance)


@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_a_gradient_in_place_of_zero_fails_well_below_the_problems_size(dtype, tolerance, share) -> None:
    """Not the size of the tolerance: that of rounding decides, so even 1e-4 of the output's norm is noticed."""
    expected = problem(torch.float64, 1.0)
    wrong = torch.full((64,), share / 8, dtype=torch.float64).to(dtype)
    with pytest.raises(AssertionError, match="zero"):
        assert_close({"out": expected["out"].to(dtype), "zero": wrong}, expected, tolerance)


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_a_missing_or_doubled_small_gradient_fails(dtype, tolerance, share) -> None:
    expected = problem(torch.float64, 1.0)
    expected["zero"] = expected["out"].flip(0) * share
    for factor in (0.0, 2.0, -1.0, 1 + 3 * tolerance):
        actual = {"out": expected["out"], "zero": expected["zero"] * factor}
        with pytest.raises(AssertionError):
            assert_close(actual, expected, tolerance)


def test_the_scale_may_come_from_outside() -> None:
    zero, rounding = torch.zeros(4), torch.full((4,), 1e-8)
    with pytest.raises(AssertionError):
        assert_close(rounding, zero, 1e-5)
    assert_close(rounding, zero, 1e-5, scale=1.0)
    with pytest.raises(AssertionError):
        assert_close(torch.full((4,), 1e-3), zero, 1e-5, scale=1.0)


def test_nan_missing_tensors_other_shapes_and_other_names_fail() -> None:
    expected = {"out": torch.ones(4), "grad": torch.zeros(4)}
    for wrong in (torch.full((4,), torch.nan), torch.full((4,), torch.inf), None, torch.zeros(3)):
        assert relative_errors(expected | {"grad": wrong}, expected, 1e-5, 0.0, ROUNDINGS)["grad"] == float("inf")
    with pytest.raises(AssertionError, match="compared with"):
        assert_close({"out": torch.ones(4)}, expected, 1e-5)


def test_where_everything_is_zero_zero_is_asked_for() -> None:
    assert_close(torch.zeros(3), torch.zeros(3), 1e-5)
    assert_close(torch.zeros(0, 3), torch.zeros(0, 3), 1e-5)
    with pytest.raises(AssertionError):
        assert_close(torch.full((3,), 1e-30), torch.zeros(3), 1e-5)
