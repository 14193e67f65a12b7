"""One vector a product: `pool`, and the model's own `embed`."""

import pytest
import torch
from model_cases import batch_of, build, tiny_spec

from m5ds.model.summaries import pool

STATES = torch.tensor([[[1.0, 2.0], [3.0, 5.0], [-7.0, 0.5]], [[4.0, 1.0], [2.0, 9.0], [1.0, 1.0]]])
PRESENT = torch.tensor([[True, False, True], [False, False, False]])


def test_the_mean_and_sum_are_over_present_modalities_alone():
    assert pool(STATES, PRESENT, "sum", False).tolist() == [[-6.0, 2.5], [0.0, 0.0]]
    assert pool(STATES, PRESENT, "mean", False).tolist() == [[-3.0, 1.25], [0.0, 0.0]]


def test_the_mean_of_one_modality_is_itself():
    assert pool(STATES[:1], torch.tensor([[False, True, False]]), "mean", False).tolist() == [[3.0, 5.0]]


def test_concat_keeps_every_place():
    assert pool(STATES, PRESENT, "concat", False).tolist() == [[1.0, 2.0, 0.0, 0.0, -7.0, 0.5], [0.0] * 6]


@pytest.mark.parametrize("operation", ["concat", "mean", "sum"])
def test_normalised_vectors_have_length_one_and_the_same_direction(operation):
    plain, found = (pool(STATES.half(), PRESENT, operation, normalized) for normalized in (False, True))
    assert found.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(found[0], plain[0] / plain[0].norm())
    assert not found[1].any()


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("operation", ["concat", "mean", "sum"])
@pytest.mark.parametrize("states", ["fused", "contrastive"])
def test_embed_pools_the_states_of_an_unmasked_forward(tmp_path, states, operation, normalized):
    spec = tiny_spec(tmp_path)
    model = build(spec).eval()
    batch = batch_of(spec, [[True] * 5, [True, False, True, False, False], [False] * 5])
    output = model(batch, masked=False)
    values = output.fused_BMD if states == "fused" else output.unimodal_BMD
    found = model.embed(batch, states=states, operation=operation, normalized=normalized)
    assert torch.equal(found, pool(values.detach(), batch.present_BM, operation, normalized))
    assert not found.requires_grad


def test_embed_is_the_mean_of_fused_states_with_length_one_unless_asked(tmp_path):
    spec = tiny_spec(tmp_path)
    model = build(spec).eval()
    batch = batch_of(spec, [[True] * 5] * 2)
    assert torch.equal(model.embed(batch), model.embed(batch, states="fused", operation="mean", normalized=True))


def test_embed_in_training_is_refused(tmp_path):
    spec = tiny_spec(tmp_path)
    with pytest.raises(ValueError, match=r"training mode; call model.eval\(\) first"):
        build(spec).embed(batch_of(spec, [[True] * 5]))


@pytest.mark.parametrize("choice", [{"states": "dense"}, {"operation": "max"}])
def test_an_unknown_choice_is_refused(tmp_path, choice):
    spec = tiny_spec(tmp_path)
    with pytest.raises(ValueError, match=r"states are fused or contrastive, operations concat, mean, sum"):
        build(spec).eval().embed(batch_of(spec, [[True] * 5]), **choice)


def test_contrastive_states_need_the_loss(tmp_path):
    spec = tiny_spec(tmp_path, "objectives.contrastive=null")
    model = build(spec).eval()
    with pytest.raises(ValueError, match="need a model with a contrastive loss; use fused"):
        model.embed(batch_of(spec, [[True] * 5]), states="contrastive")
    assert model.embed(batch_of(spec, [[True] * 5])).shape == (1, 16)
