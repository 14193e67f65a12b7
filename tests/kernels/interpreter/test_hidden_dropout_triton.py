"""hidden_dropout's Triton kernel in the interpreter: the same bits as the reference."""

import pytest
import torch

from m5ds.kernels.dispatch import last_path
from m5ds.kernels.hidden_dropout import hidden_dropout
from m5ds.kernels.hidden_dropout.configurations import configurations
from m5ds.kernels.hidden_dropout.triton_path import LAUNCHED
from m5ds.kernels.layout import PackedLayout


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
    torch.library.opcheck(drop, (x_ND, *rows, 0, 0.5, 1, 1), test_utils=("test_schema", "test_faketensor"))
