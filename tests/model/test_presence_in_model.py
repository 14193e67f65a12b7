"""What presence means for the model: absent is absent, every pattern is legal, batch mates do not matter."""

import dataclasses

import pytest
import torch
from model_cases import all_patterns, backward, batch_of, build, run, select, tiny_spec

NAMES = ("image", "text", "table", "video", "audio")


@pytest.fixture(params=["drop", "token", "zeros"])
def policy(request):
    return request.param


def test_every_presence_pattern_gives_finite_losses_and_gradients(tmp_path, policy):
    spec = tiny_spec(tmp_path, f"absent={policy}")
    model = build(spec)
    for number, pattern in enumerate(all_patterns()):
        found = backward(model, batch_of(spec, [pattern], ids=[f"p{number}"]))
        assert all(torch.isfinite(value).all() for value in found.values()), pattern
    batch = batch_of(spec, all_patterns())
    output = run(model, batch)
    assert all(torch.isfinite(value) for value in output.losses.values())
    assert output.loss.isfinite() and output.loss > 0


def test_an_empty_product_has_a_zero_embedding_and_is_marked(tmp_path, policy):
    spec = tiny_spec(tmp_path, f"absent={policy}")
    output = run(build(spec), batch_of(spec, [[False] * 5, [True] * 5]))
    assert not output.present_BM[0].any() and output.present_BM[1].all()
    assert not output.fused_BMD[0].any() and not output.unimodal_BMD[0].any()
    assert output.fused_BMD[1].any()


def test_a_batch_of_empty_products_still_gives_every_parameter_a_zero_gradient(tmp_path):
    spec = tiny_spec(tmp_path)
    found = backward(build(spec), batch_of(spec, [[False] * 5] * 2))
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize("absent", range(5), ids=NAMES)
def test_an_absent_modality_gets_zero_gradient_and_all_parameters_have_one(tmp_path, absent):
    spec = tiny_spec(tmp_path)
    present_BM = torch.ones(4, 5, dtype=torch.bool)
    present_BM[:, absent] = False
    found = backward(build(spec), batch_of(spec, present_BM))
    own = [name for name in found if any(part.startswith(NAMES[absent]) for part in name.split("."))]
    assert len(own) > 20
    assert all(not found[name].any() for name in own)
    assert all(value.any() for name, value in found.items() if name.endswith("qkv.weight") and name not in own)


def test_the_weights_of_an_absent_modality_change_nothing(tmp_path):
    spec = tiny_spec(tmp_path)
    model = build(spec)
    batch = batch_of(spec, [[True, True, True, False, True]] * 3)
    before = run(model, batch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part.startswith("video") for part in name.split(".")):
                parameter.add_(1.0)
    after = run(model, batch)
    assert torch.equal(before.fused_BMD, after.fused_BMD) and torch.equal(before.loss, after.loss)


def test_outputs_do_not_depend_on_batch_mates(tmp_path, policy):
    spec = tiny_spec(tmp_path, f"absent={policy}")
    model = build(spec).eval()
    batch = batch_of(spec, all_patterns())
    together = run(model, batch)
    for product in (0, 5, 22, 31):
        alone = run(model, select(batch, spec, [product]))
        torch.testing.assert_close(alone.unimodal_BMD[0], together.unimodal_BMD[product], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(alone.fused_BMD[0], together.fused_BMD[product], atol=1e-6, rtol=1e-5)


def test_two_half_batches_with_the_global_counts_give_the_gradients_of_the_whole(tmp_path):
    spec = tiny_spec(tmp_path, "objectives.contrastive=null")
    model = build(spec).double()
    batch = batch_of(spec, all_patterns())
    counts = model.count_targets(batch, 7)
    whole = backward(model, batch)
    halves = [backward(model, select(batch, spec, part), counts=counts) for part in (range(0, 11), range(11, 32))]
    for name, value in whole.items():
        summed = halves[0][name] + halves[1][name]
        torch.testing.assert_close(summed, value, atol=1e-9, rtol=1e-7, msg=name)


def test_an_image_changes_the_mlm_logits_of_its_product(tmp_path):
    """The released code's masked heads read states before fusion: the image never reached the text (defect 1)."""
    spec = tiny_spec(tmp_path)
    model = build(spec).eval()
    batch = batch_of(spec, [[True] * 5] * 8)
    head, logits = model.objectives.masked.heads["text"], []
    head.norm.register_forward_hook(
        lambda module, args, output: logits.append((output @ head.decoder_weight.T + head.decoder_bias).detach())
    )
    run(model, batch)
    image = batch.modalities["image"]
    changed = dataclasses.replace(image, values_NF=image.values_NF + 1.0)
    run(model, dataclasses.replace(batch, modalities={**batch.modalities, "image": changed}))
    assert logits[0].shape[0] > 0
    assert (logits[0] - logits[1]).abs().max() > 1e-5


def test_the_token_policy_lets_products_see_what_is_missing(tmp_path):
    spec = tiny_spec(tmp_path, "absent=token")
    model = build(spec)
    batch = batch_of(spec, [[True, True, False, False, False]])
    output = run(model, batch)
    assert output.layout.lengths[0][2:] == (1, 1, 1)
    found = backward(model, batch)["absent.tokens_MD"]
    assert found[2:].any(1).all() and not found[:2].any()


def test_the_zeros_policy_adds_whole_segments_that_no_loss_sees(tmp_path):
    spec = tiny_spec(tmp_path, "absent=zeros")
    model = build(spec)
    batch = batch_of(spec, [[True, True, False, True, True], [True] * 5])
    counts = model.count_targets(batch, 7)
    output = run(model, batch)
    assert output.layout.lengths[0][2] == spec.modalities["table"].input.max_rows + 1
    assert counts["mem"] == model.count_targets(select(batch, spec, [1]), 7)["mem"]
    assert not output.unimodal_BMD[0, 2].any()
