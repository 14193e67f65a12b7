"""What the model refuses to be built of or to run on, and what activation checkpointing does."""

import pytest
import torch
from model_cases import backward, batch_of, build, run, tiny_spec

from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining

FULL = [[True] * 5] * 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives.contrastive.pairs=[[image, image]]"], "has 'image' with itself"),
        (["objectives.contrastive.pairs=[[image, text], [text, image]]"], "repeats a pair"),
        (
            ["objectives.contrastive.pairs=[[image, table]]", "modalities.table.cls=none"],
            "names 'table', which has no summary",
        ),
        (["blocks.cross.updates=[smell]"], "model.blocks.cross.updates names 'smell'"),
        (["blocks.unimodal.causal=[smell]"], "model.blocks.unimodal.causal names 'smell'"),
        (["modalities.image.embedder=regions"], "takes input kind region_features, got image_patches"),
        (["modalities.image.head=regresion"], "head 'regresion' is unknown; registered: regression, vocabulary"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_spec(tmp_path, *overrides))


def test_tokens_without_a_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has tokens but vocab_size is 0"):
        M5ForPretraining(M5Config.from_spec(tiny_spec(tmp_path)))


def test_a_batch_of_other_modalities_is_refused(tmp_path):
    model = build(tiny_spec(tmp_path))
    batch = batch_of(model.spec, FULL)
    del batch.modalities["video"]
    with pytest.raises(ValueError, match="batch has modalities image, text, table, audio; the model has image, text"):
        model(batch)


@pytest.mark.parametrize("recomputes", [False, True])
def test_activation_checkpointing_runs_every_block_again_in_the_backward_pass(tmp_path, recomputes):
    model = build(tiny_spec(tmp_path, "blocks.unimodal.repeat=1"), activation_checkpointing=recomputes)
    calls = []
    for name, block in model.blocks.items():
        block.register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    backward(model, batch_of(model.spec, FULL))
    assert sorted(calls) == sorted([*model.blocks] * (2 if recomputes else 1))
    calls.clear()
    with torch.no_grad():
        run(model, batch_of(model.spec, FULL))
    assert sorted(calls) == sorted(model.blocks)
    calls.clear()
    run(model.eval(), batch_of(model.spec, FULL)).loss.backward()
    assert sorted(calls) == sorted(model.blocks)


def test_activation_checkpointing_serves_gradients_of_chosen_tensors(tmp_path):
    """Reentrant checkpoints know `backward` alone, and lose the gradient where a block's input has none."""
    model = build(tiny_spec(tmp_path, "dropout=0.2"), activation_checkpointing=True)
    plain = build(model.spec)
    batch = batch_of(model.spec, FULL)
    name = "blocks.unimodal_0.ffn.text.fc1.weight"
    found, expected = (
        torch.autograd.grad(run(each, batch).loss, dict(each.named_parameters())[name])[0] for each in (model, plain)
    )
    assert torch.equal(found, expected) and found.any()


def test_transformers_own_checkpointing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not support (gradient|activation) checkpointing"):
        build(tiny_spec(tmp_path)).gradient_checkpointing_enable()


@pytest.mark.parametrize("name", ["mrp", "mam", "itc/image-text", "itc/video-audio", "products"])
def test_counts_that_lack_any_loss_are_refused(tmp_path, name):
    model = build(tiny_spec(tmp_path))
    batch = batch_of(model.spec, FULL)
    counts = model.count_targets(batch, 7)
    del counts[name]
    with pytest.raises(ValueError, match=f"counts lacks {name};"):
        run(model, batch, counts=counts)


def test_a_loss_is_divided_by_its_count_down_to_one(tmp_path):
    model = build(tiny_spec(tmp_path, "harmony={kind: learned}")).double()
    with torch.no_grad():
        model.harmony.scores.copy_(torch.linspace(-1, 1, len(model.harmony.scores)))
    batch = batch_of(model.spec, FULL)
    own = model.count_targets(batch, 7)
    by_count = {count: run(model, batch, counts=dict.fromkeys(own, count)) for count in (1, 2, 4)}
    for count in (2, 4):
        torch.testing.assert_close(count * by_count[count].loss, by_count[1].loss)
        for name, loss in by_count[1].losses.items():
            torch.testing.assert_close(count * by_count[count].losses[name], loss)
