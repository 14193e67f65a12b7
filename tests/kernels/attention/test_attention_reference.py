"""The reference defines the op: gradcheck, an independent dense implementation, and its edge cases."""

import pytest
import torch
from attention_cases import VISIBILITY, M, make_layout, make_qkv, random_matrix, run_with_gradients
from closeness import assert_close

from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.model.fusion import visibility_matrix

LENGTHS = [[2, 3, 0, 1, 2], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [3, 0, 2, 2, 0]]
FEW = [[2, 2, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


def test_gradients_of_the_reference_pass_gradcheck():
    layout = make_layout(FEW)
    qkv = [x.requires_grad_() for x in make_qkv(layout.num_rows, 2, 2, torch.float64)[:3]]
    for visibility in (VISIBILITY["all"], random_matrix(1)):
        for dropout in (0.0, 0.4):

            def op(q, k, v, visibility=visibility, dropout=dropout):
                return cross_modal_attention(
                    q, k, v, layout, visibility, causal=(0, 1, 0, 1, 0), dropout=dropout, seed=5, path="reference"
                )

            assert torch.autograd.gradcheck(op, qkv)


def test_reference_agrees_with_one_dense_attention_over_all_rows_of_the_batch():
    """The whole definition in one mask: same product, visible modality, causal limit inside the own segment."""
    layout = make_layout(LENGTHS)
    visibility, causal = random_matrix(3), (False, True, False, True, False)
    product, modality, position = layout.row_product_T, layout.row_modality_T, layout.row_position_T
    seen = (product[:, None] == product) & torch.tensor(visibility)[modality][:, modality]
    own_later = (modality[:, None] == modality) & (position[:, None] < position)
    seen &= ~(own_later & torch.tensor(causal)[modality][:, None])

    def dense(q, k, v):
        score = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        weight = score.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen.any(1)[:, None], 0.0)
        return torch.einsum("hqk,khd->qhd", weight, v)

    def op(q, k, v):
        return cross_modal_attention(q, k, v, layout, visibility, causal=causal, path="reference")

    inputs = make_qkv(layout.num_rows, 2, 4, torch.float64)
    actual, expected = run_with_gradients(op, inputs), run_with_gradients(dense, inputs)
    expected = {name: x.nan_to_num(0.0) for name, x in expected.items()}
    assert_close(actual, expected, 1e-12)


def test_rows_without_visible_keys_give_zero_and_zero_gradients():
    layout = make_layout([[2, 0, 0, 0, 0]])
    result = run_with_gradients(
        lambda q, k, v: cross_modal_attention(q, k, v, layout, VISIBILITY["others"], path="reference"),
        make_qkv(2, 1, 4, torch.float64),
    )
    assert all(torch.equal(x, torch.zeros_like(x)) for x in result.values())


def test_dropout_keeps_the_expected_share_and_the_expected_value():
    layout = make_layout([[64, 64, 0, 0, 0]] * 4)
    zeros = torch.zeros(layout.num_rows, 2, 8, dtype=torch.float64)
    ones = torch.ones_like(zeros)
    out = cross_modal_attention(zeros, zeros, ones, layout, VISIBILITY["all"], dropout=0.25, seed=1, path="reference")
    assert abs(float(out.mean()) - 1.0) < 0.01
    assert float(out.std()) > 0.01


def test_dropout_depends_on_seed_layer_draw_product_and_head_only():
    """Packing a product with others changes nothing; every part of its key changes something."""
    inputs = make_qkv(8, 2, 4, torch.float64)[:3]
    alone = make_layout([[3, 5, 0, 0, 0]])

    def attend(layout, q, k, v, **options):
        options = {"dropout": 0.5, "seed": 1, "layer": 2} | options
        return cross_modal_attention(q, k, v, layout, VISIBILITY["all"], path="reference", **options)

    base = attend(alone, *inputs)
    assert not torch.equal(base, attend(alone, *inputs, seed=2))
    assert not torch.equal(base, attend(alone, *inputs, layer=3))
    same_heads = [x[:, :1].expand(-1, 2, -1) for x in inputs]
    by_head = attend(alone, *same_heads)
    assert not torch.equal(by_head[:, 0], by_head[:, 1])

    pair = make_layout([[0, 2, 0, 0, 0], [3, 5, 0, 0, 0]])
    pair.product_B[1], pair.draw_B[1] = alone.product_B[0], alone.draw_B[0]
    second = torch.tensor([0, 1, 2, 5, 6, 7, 8, 9])
    packed = [torch.zeros(10, 2, 4, dtype=torch.float64).index_copy(0, second, x) for x in inputs]
    assert torch.equal(attend(pair, *packed)[second], base)
    pair.draw_B[1] += 1
    assert not torch.equal(attend(pair, *packed)[second], base)


@pytest.mark.parametrize(("preset", "name"), [("identity", "identity"), ("all", "all"), ("off_diagonal", "others")])
def test_every_preset_of_the_model_is_among_the_matrices_of_these_tests(preset, name):
    assert visibility_matrix(preset, ("image", "text", "table", "video", "audio")) == VISIBILITY[name]


def test_a_sixth_modality_needs_no_change():
    layout = make_layout([[1, 2, 0, 1, 0, 3]])
    everything = [[True] * (M + 1)] * (M + 1)
    out = cross_modal_attention(*make_qkv(7, 1, 4, torch.float64)[:3], layout, everything, path="reference")
    assert out.shape == (7, 1, 4)
