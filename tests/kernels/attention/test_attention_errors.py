"""Bad input is a ValueError that names the argument."""

import dataclasses

import pytest
import torch
from attention_cases import VISIBILITY, M, make_layout, make_qkv

from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.kernels.cross_modal_attention.dropout import Dropout
from m5ds.kernels.cross_modal_attention.validation import validate

LAYOUT = make_layout([[2, 3, 0, 0, 0], [1, 0, 4, 0, 0]])
Q, K, V, _ = make_qkv(LAYOUT.num_rows, 2, 8, torch.float32)
ALL = VISIBILITY["all"]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("q_THD", {"q": Q[0]}),
        ("q_THD", {"q": Q.long(), "k": K.long(), "v": V.long()}),
        ("k_THD.*dtype", {"k": K.double()}),
        ("v_THD.*dtype", {"v": V.half()}),
        ("k_THD.*shape", {"k": K[:, :1]}),
        ("v_THD.*shape", {"v": V[:-1]}),
        ("k_THD.*device", {"k": K.to("meta")}),
        ("v_THD.*device", {"v": V.to("meta")}),
        ("layout describes 10 rows", {"q": Q[:9], "k": K[:9], "v": V[:9]}),
        ("visibility", {"visibility": ALL[:4]}),
        ("visibility", {"visibility": [row[:4] for row in ALL]}),
        ("updates", {"updates": (True,) * 4}),
        ("causal", {"causal": (True,) * 6}),
        ("dropout", {"dropout": 1.0}),
        ("dropout", {"dropout": -0.1}),
        ("layer", {"dropout": 0.1, "layer": 1 << 16}),
        ("path", {"path": "triton"}),
        ("layout", {"layout": LAYOUT.to("meta")}),
    ],
)
def test_bad_argument_is_named(message, change, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    options = {"q": Q, "k": K, "v": V, "layout": LAYOUT, "visibility": ALL} | change
    arguments = [options.pop(name) for name in ("q", "k", "v", "layout", "visibility")]
    with pytest.raises(ValueError, match=message):
        cross_modal_attention(*arguments, **options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seg_start_BM", torch.tensor([[0, 3, 6, 10, 10], [1, 6, 6, 10, 10]]), "product 1, modality 0 starts at row 1"),
        ("seg_start_BM", torch.tensor([[0, 3, 6, 10, 10], [2, 6, 8, 10, 10]]), "product 1, modality 2 starts at row 8"),
        ("seg_len_BM", torch.tensor([[2, 3, 0, 0, 0], [1, 0, 5, 0, 0]]), "seg_len_BM and layout.lengths disagree"),
        ("lengths", ((2, 3, 0, 0, 0), (1, 0, 5, 0, 0)), "modality 2 hold 5 rows, its slab has 4"),
        ("lengths", ((2, 3, 0, 0, 0),), "lengths"),
        ("lengths", ((2, 3, 5, 0, 0), (1, 0, -1, 0, 0)), "negative"),
        ("slab", (0, 3, 6, 10), "slab"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(field, value, message):
    layout = dataclasses.replace(LAYOUT, **{field: value})
    if field == "slab":
        layout = dataclasses.replace(layout, slab=value)
    with pytest.raises(ValueError, match=message):
        cross_modal_attention(Q, K, V, layout, ALL)


@pytest.mark.parametrize(("dim", "dtype", "message"), [(48, torch.float32, "head dim"), (32, torch.float64, "float32")])
def test_triton_refuses_what_its_table_lacks(dim, dtype, message):
    inputs = make_qkv(LAYOUT.num_rows, 2, dim, dtype)[:3]
    with pytest.raises(ValueError, match=message):
        validate(*inputs, LAYOUT, Dropout(0.0, 0, 0), triton=True)


def test_dropout_refuses_more_rows_or_heads_than_its_counter_holds():
    long = make_layout([[0] * (M - 1) + [(1 << 16) + 1]])
    with pytest.raises(ValueError, match="dropout supports at most 65536 rows"):
        Dropout(0.1, 0, 0).validate(long, num_heads=1)
    with pytest.raises(ValueError, match="dropout supports at most 256 heads"):
        Dropout(0.1, 0, 0).validate(LAYOUT, num_heads=257)
