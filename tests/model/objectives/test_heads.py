"""Masked heads by themselves: standardised targets, weights, and how they are found by name."""

import dataclasses
import types

import pytest
import torch
from model_cases import batch_of, build, tiny_spec
from torch import nn

from m5ds.model.objectives import heads
from m5ds.model.objectives.heads import HeadContext, standardized

FULL = [[True] * 5] * 3


def context(spec, name: str, table=None) -> HeadContext:
    return HeadContext(
        modality=name, config=spec.modalities[name], hidden_size=16, layer_norm_eps=1e-3, token_table=table
    )


def test_a_standardised_row_has_mean_0_and_deviation_1():
    rows = torch.tensor([[1.0, 3.0], [10.0, 10.0], [-5.0, 15.0]], dtype=torch.float64)
    found = standardized(rows)
    torch.testing.assert_close(found[0], torch.tensor([-1.0, 1.0]).double(), atol=1e-6, rtol=0)
    assert torch.equal(found[1], torch.zeros(2).double())
    torch.testing.assert_close(found[2], torch.tensor([-1.0, 1.0]).double(), atol=1e-6, rtol=0)


def test_a_nearly_constant_row_is_not_blown_up():
    """Of variance 1e-6, which is the epsilon: half of the variance that it is divided by."""
    found = standardized(torch.tensor([[7.001, 6.999]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0]]).double() / 2**0.5, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["image_patches", "video_tubes", "audio_patches"])
def test_raw_media_are_standardised(tmp_path, kind):
    spec = tiny_spec(tmp_path)
    (name,) = [name for name in spec.modality_names if spec.modalities[name].input.kind == kind]
    assert heads.build(context(spec, name)).standardize


def test_a_regression_is_the_mean_over_features_and_the_weighted_sum_over_rows(tmp_path):
    spec = tiny_spec(tmp_path)
    head = heads.build(context(spec, "image")).double()
    assert head.norm.eps == 1e-3
    rows = batch_of(spec, FULL).modalities["image"]
    rows = dataclasses.replace(rows, values_NF=rows.values_NF.double())
    masked, hidden = torch.tensor([4, 0, 2]), torch.randn(3, 16, dtype=torch.float64)
    on_loss, on_logit = torch.tensor([0.5, 2.0, 3.0]).double(), torch.tensor([1.5, -1.0, 0.25]).double()
    predicted = head.decoder(head.norm(hidden)) * on_logit[:, None]
    each = (predicted - standardized(rows.values_NF[masked])).square().sum(1) / 48
    assert predicted.shape == (3, 48)
    torch.testing.assert_close(head(hidden, rows, masked, on_loss, on_logit), (each * on_loss).sum())


def test_the_size_of_a_partitioned_token_table_is_read_where_zero_keeps_it(tmp_path):
    table = nn.Parameter(torch.empty(0))
    table.ds_shape = (23, 16)
    assert heads.build(context(tiny_spec(tmp_path), "text", table)).decoder_bias.shape == (23,)
    whole = nn.Parameter(torch.empty(29, 16))
    head = heads.build(context(tiny_spec(tmp_path), "text", whole))
    assert head.decoder_bias.shape == (29,) and not head.decoder_bias.any() and head.norm.eps == 1e-3


def test_a_registered_head_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "_HEADS", dict(heads._HEADS))

    @heads.register("own")
    def make(given):
        return types.SimpleNamespace(given=given)

    spec = tiny_spec(tmp_path, "modalities.image.head=own")
    wanted = context(spec, "image")
    assert heads.build(wanted).given is wanted and make(3).given == 3


def test_the_model_gives_every_head_its_own_modality(tmp_path):
    model = build(tiny_spec(tmp_path))
    widths = {name: model.objectives.masked.heads[name].decoder.out_features for name in ("image", "video", "audio")}
    assert widths == {name: model.spec.modalities[name].input.dim for name in widths}
    assert model.objectives.masked.heads["table"].decoder_weight is model.embeddings.table_token
