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
        (["contrastive.pairs=[[image, image]]"], "has 'image' with itself"),
        (["contrastive.pairs=[[image, text], [text, image]]"], "repeats a pair"),
        (["contrastive.pairs=[[image, table]]", "modalities.table.cls=none"], "names 'table', which has no summary"),
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
        run(model, batch, counts={})


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
