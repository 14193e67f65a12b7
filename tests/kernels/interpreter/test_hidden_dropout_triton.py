"""hidden_dropout's Triton kernel in the interpreter: the same bits as the reference."""

import pytest
import torch
from embed_cases import all_patterns

from m5ds.kernels.common.dispatch import last_path
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.hidden_dropout import hidden_dropout
from m5ds.kernels.hidden_dropout.configurations import configurations
from m5ds.kernels.hidden_dropout.triton_path import LAUNCHED
from m5ds.kernels.verify.traffic import count_traffic


def layout_of():
    length_BM = torch.tensor([[3, 0, 7], [0, 0, 0], [9, 5, 2], [1, 1, 11]])
    products = torch.tensor([5, 6, -(1 << 62) - 17, 1 << 40])
    draws = torch.tensor([0, 1, 0xFFFFFFFF, 3])
    return PackedLayout.build(length_BM, length_BM > 0, products, draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("width", "first_row", "rows"), [(70, 0, 39), (128, 13, 6), (1, 19, 20), (260, 38, 1)])
def test_values_and_gradients_are_the_references(dtype, width, first_row, rows):
    layout = layout_of()
    x_ND = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for path in ("reference", "triton"):
        x = x_ND.clone().requires_grad_()
        out = hidden_dropout(x, layout, first_row, probability=0.37, seed=(1 << 32) + 9, index=515, path=path)
        assert last_path("hidden_dropout") == path and out.dtype == dtype
        out.backward(x_ND)
        found.append((out.detach(), x.grad))
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected == 0, got == 0)
        torch.testing.assert_close(got.float(), expected.float(), rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=0)


def test_all_presence_patterns_in_one_batch_and_a_single_row():
    length_BM = all_patterns() * torch.tensor([1, 3, 2, 1, 4])
    products = torch.arange(32) * (1 << 35) - 7
    layout = PackedLayout.build(length_BM, length_BM > 0, products, torch.arange(32))
    for first_row, rows in ((0, layout.num_rows), (layout.num_rows - 1, 1)):
        x_ND = torch.randn(rows, 33)
        options = {"probability": 0.2, "seed": 3, "index": 65535}
        expected = hidden_dropout(x_ND, layout, first_row, **options, path="reference")
        assert torch.equal(hidden_dropout(x_ND, layout, first_row, **options, path="triton"), expected)


def test_every_value_is_written_once_and_in_bounds():
    layout = layout_of()
    with count_traffic() as traffic:
        hidden_dropout(torch.ones(19, 70), layout, 13, probability=0.5, seed=1, index=1, path="triton")
    assert traffic.of("hidden_dropout_kernel").written_once("p_out")


def test_zero_rows_have_an_empty_gradient():
    x_ND = torch.ones(0, 8, requires_grad=True)
    out_ND = hidden_dropout(x_ND, layout_of(), 0, probability=0.5, seed=1, index=1, path="triton")
    (grad,) = torch.autograd.grad(out_ND.sum(), x_ND)
    assert grad.shape == (0, 8)


@pytest.mark.parametrize("wrapper", ["again", "checkpoint", "compile"])
def test_gradients_are_bitwise_the_same(wrapper):
    layout, x_ND = layout_of(), torch.randn(39, 20, requires_grad=True)

    def run(x):
        return hidden_dropout(x * 2, layout, 0, probability=0.5, seed=1, index=1, path="triton") * 3

    wrapped = {
        "again": run,
        "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False),
        "compile": torch.compile(run, backend="aot_eager"),
    }[wrapper]
    weight_ND = torch.randn(39, 20)
    (want,), (got,) = (torch.autograd.grad((f(x_ND) * weight_ND).sum(), x_ND) for f in (run, wrapped))
    assert torch.equal(got, want)


def test_every_listed_dtype_is_launched():
    layout = layout_of()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        hidden_dropout(torch.ones(4, 8, dtype=dtype), layout, 0, probability=0.5, seed=1, index=1, path="triton")
    assert {configuration.variant for configuration in configurations("sm_90")} == LAUNCHED


def test_the_operator_passes_torchs_own_checks():
    from m5ds.kernels.hidden_dropout.triton_path import drop

    layout = layout_of()
    x_ND = torch.randn(39, 6, requires_grad=True)
    rows = (layout.row_product_T, layout.row_modality_T, layout.row_position_T, layout.product_B, layout.draw_B)
    torch.library.opcheck(drop, (x_ND, *rows, 0, 0.5, 1, 1))
