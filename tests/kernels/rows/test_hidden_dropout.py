"""hidden_dropout's definition: rates, keys, gradients, errors."""

import dataclasses

import pytest
import torch

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.hidden_dropout import hidden_dropout, keep_mask


def layout_of(lengths, products, draw=3):
    length_BM = torch.tensor(lengths)
    draws = torch.full((len(products),), draw)
    return PackedLayout.build(length_BM, length_BM > 0, torch.tensor(products), draws)


def test_the_share_dropped_is_the_probability_and_the_mean_is_kept():
    layout = layout_of([[40, 60]] * 4, [1, 2, 3, -4])
    x_ND = torch.ones(layout.num_rows, 130)
    out_ND = hidden_dropout(x_ND, layout, 0, probability=0.3, seed=1, index=5)
    assert (out_ND == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert out_ND.mean() == pytest.approx(1.0, abs=0.02)
    assert out_ND.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


def test_bits_belong_to_the_product_and_its_row_not_to_the_packing():
    together = layout_of([[3, 5], [2, 0], [4, 6]], [11, 12, 13])
    alone = layout_of([[4, 6]], [13])
    kept = keep_mask(together, 0, together.num_rows, 9, 0.5, 1, 5)
    own = torch.cat([kept[5:9], kept[14:20]])
    assert torch.equal(own, keep_mask(alone, 0, 10, 9, 0.5, 1, 5))
    assert torch.equal(kept[9:14], keep_mask(together, 9, 5, 9, 0.5, 1, 5)), "a slab of its own has the same bits"


@pytest.mark.parametrize("change", ["seed", "index", "draw", "product", "modality"])
def test_everything_in_the_key_changes_the_bits(change):
    layout = layout_of([[8, 8]], [11], draw=4 if change == "draw" else 3)
    if change == "product":
        layout = layout_of([[8, 8]], [11 + (1 << 32)])
    first = 8 if change == "modality" else 0
    other = keep_mask(layout, first, 8, 16, 0.5, 2 if change == "seed" else 1, 6 if change == "index" else 5)
    base = keep_mask(layout_of([[8, 8]], [11]), 0, 8, 16, 0.5, 1, 5)
    assert 0.3 < (base == other).float().mean() < 0.7


def test_gradients_are_dropped_like_values():
    layout = layout_of([[3, 2]], [11])
    x_ND = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    out_ND = hidden_dropout(x_ND, layout, 0, probability=0.4, seed=1, index=5)
    out_ND.sum().backward()
    assert torch.equal(x_ND.grad != 0, keep_mask(layout, 0, 5, 7, 0.4, 1, 5))


def test_gradcheck():
    layout = layout_of([[3, 2], [0, 4]], [11, 12])
    x_ND = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: hidden_dropout(x, layout, 0, probability=0.4, seed=1, index=5, path="reference"), x_ND
    )


def test_no_rows_and_no_dropout_cost_nothing():
    layout = layout_of([[0, 2]], [11])
    x_ND = torch.randn(2, 7)
    assert hidden_dropout(x_ND, layout, 0, probability=0.0, seed=1, index=5) is x_ND
    assert hidden_dropout(x_ND[:0], layout, 0, probability=0.5, seed=1, index=5).shape == (0, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.0}, "dropout must lie in"),
        ({"index": 1 << 16}, "index must lie in"),
        ({"first_row": 1}, "does not lie in a layout of 2 rows"),
        ({"x_ND": torch.ones(2, 7, dtype=torch.int64)}, "x_ND must be floating"),
        ({"x_ND": torch.ones(2, 7, device="meta")}, "x_ND is on meta, layout on cpu"),
        ({"x_ND": torch.ones(7)}, "x_ND"),
        ({"path": "fast"}, "path must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    settings = {"x_ND": torch.randn(2, 7), "first_row": 0, "probability": 0.5, "seed": 1, "index": 5} | arguments
    with pytest.raises(ValueError, match=message):
        hidden_dropout(layout=layout_of([[0, 2]], [11]), **settings)


def test_a_layout_whose_segments_overlap_is_refused():
    layout = layout_of([[1, 2], [3, 1]], [11, 12])
    layout = dataclasses.replace(layout, seg_start_BM=torch.zeros_like(layout.seg_start_BM))
    with pytest.raises(ValueError, match="layout.*segments overlap"):
        hidden_dropout(torch.randn(7, 3), layout, 0, probability=0.5, seed=1, index=5)
