"""Dropout and the vocabulary loss on a real device against their float64 references. Never run where written."""

import embed_cases
import pytest
import torch

from m5ds.kernels.common.dispatch import last_path
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.hidden_dropout import hidden_dropout
from m5ds.kernels.masked_cross_entropy import masked_cross_entropy

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Root mean square of the difference, over that of `expected` or, where that is smaller, over one."""
    size = max(float(expected.norm()), expected.numel() ** 0.5 * 1e-3)
    assert float((actual.detach().cpu().double() - expected).norm()) < tolerance * size


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("first_row", [0, 3])
def test_dropout_drops_the_references_bits(device, first_row, dtype):
    present_BM = embed_cases.all_patterns()
    products = torch.arange(len(present_BM)) * 7919
    layout = PackedLayout.build(present_BM * torch.tensor([5, 3, 4, 2, 1]), present_BM, products, products % 3)
    x_ND = torch.randn(layout.num_rows - first_row, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_ND = x_ND.to(dtype)
    settings = {"probability": 0.3, "seed": 4, "index": 9}
    exact_ND = x_ND.double().requires_grad_()
    want_ND = hidden_dropout(exact_ND, layout, first_row, path="reference", **settings)
    there_ND = x_ND.to(device).requires_grad_()
    got_ND = hidden_dropout(there_ND, layout.to(device), first_row, **settings)
    assert last_path("hidden_dropout") == "triton"
    assert torch.equal(got_ND.cpu() != 0, want_ND != 0)
    assert_close(got_ND, want_ND.detach(), TOLERANCE[dtype])
    (got_grad_ND,) = torch.autograd.grad(got_ND.sum(), there_ND)
    (want_grad_ND,) = torch.autograd.grad(want_ND.sum(), exact_ND)
    assert_close(got_grad_ND, want_grad_ND, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_vocabulary_cross_entropy_agrees_with_the_reference(device, dtype):
    generator = torch.Generator().manual_seed(2)
    shapes = {"hidden": (111, 64), "weight": (301, 64), "bias": (301,)}
    given = {name: 0.3 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    given = {name: value.to(dtype) for name, value in given.items()}
    target_K = torch.randint(301, (111,), generator=generator)
    exact = {name: value.double().requires_grad_() for name, value in given.items()}
    there = {name: value.to(device).requires_grad_() for name, value in given.items()}
    want = masked_cross_entropy(*exact.values(), target_K, path="reference")
    got = masked_cross_entropy(*there.values(), target_K.to(device), chunk_rows=37)
    assert_close(got, want.detach(), TOLERANCE[dtype])
    wanted = torch.autograd.grad(want, list(exact.values()))
    for gradient, expected in zip(torch.autograd.grad(got, list(there.values())), wanted, strict=True):
        assert gradient.dtype == dtype
        assert_close(gradient, expected, TOLERANCE[dtype])
