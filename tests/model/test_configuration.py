"""What the model takes from a run and its tokenizer, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from model_cases import VOCAB_SIZE, backward, batch_of, build, run, tiny_spec

from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.pairs import contrastive_pairs, pair_name

FULL = [[True] * 5] * 2


def test_a_tokenizer_fixes_vocabulary_mask_padding_and_special_tokens(tmp_path):
    tokenizer = SimpleNamespace(vocab_size=50, mask_id=7, pad_id=2, special_ids={9, 2, 7})
    settings = M5Config.for_tokenizer(tiny_spec(tmp_path), tokenizer, initializer_seed=5, activation_checkpointing=True)
    assert (settings.vocab_size, settings.mask_id, settings.pad_id, settings.special_ids) == (50, 7, 2, [2, 7, 9])
    assert settings.initializer_seed == 5 and settings.activation_checkpointing


@pytest.mark.parametrize(
    ("special_ids", "first"),
    [([], 0), (None, 0), ([0, 1, 2, 3, 4], 5), ([0, 19], 20), ([0, 20], 1), ([3, 39], 4), ([38, 39], 0)],
)
def test_random_tokens_begin_after_the_leading_special_ones(tmp_path, special_ids, first):
    settings = M5Config(vocab_size=VOCAB_SIZE, special_ids=special_ids)
    assert settings.first_ordinary_id == first


def test_a_configuration_without_a_model_or_with_other_blocks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="M5Config.model is missing"):
        _ = M5Config().spec
    settings = M5Config.from_spec(tiny_spec(tmp_path), vocab_size=VOCAB_SIZE)
    settings.block_order = ["cross"]
    with pytest.raises(ValueError, match="name different blocks"):
        _ = settings.spec


def test_pairs_are_neighbours_all_or_as_listed_in_table_order(tmp_path):
    def pairs(chosen, *more):
        return contrastive_pairs(tiny_spec(tmp_path, f"contrastive.pairs={chosen}", *more))

    names = ("image", "text", "table", "video", "audio")
    assert pairs("chain") == tuple(zip(names, names[1:], strict=False))
    assert pairs("chain", "modalities.table.cls=none")[1] == ("text", "video")
    assert pairs("all") == tuple((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
    assert pairs("none") == ()
    assert pairs("[[audio, text], [image, video]]") == (("text", "audio"), ("image", "video"))
    assert pair_name("text", "audio") == "itc/text-audio"


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
