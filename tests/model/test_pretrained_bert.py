"""The text encoder from a local Hugging Face BERT: same states as BERT itself, or one error that lists what does not
fit.
"""

import dataclasses

import pytest
import torch
from model_cases import VOCAB_SIZE, batch_of, build, tiny_spec
from transformers import BertConfig, BertModel

from m5ds.model.pretrained import load_initial_weights


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        initializer_range=0.5,
        layer_norm_eps=1e-5,
    )
    model = BertModel(settings, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path / "bert")
    return model


def spec_for(tmp_path, *overrides):
    return tiny_spec(
        tmp_path,
        "blocks.unimodal.repeat=2",
        "blocks.unimodal.norm=post",
        f"modalities.text.init_from={tmp_path}/bert",
        *overrides,
    )


def test_unimodal_text_states_are_those_of_the_bert(tmp_path, bert):
    spec = spec_for(tmp_path)
    model = build(spec).eval()
    filled = load_initial_weights(model)
    assert len(filled) == 5 + 2 * 12
    batch = batch_of(spec, [[True] * 5])
    states = []
    model.blocks["unimodal_1"].register_forward_hook(lambda module, args, output: states.append((args[1], output)))
    model(batch, masked=False)
    layout, x_TD = states[0]
    tokens = batch.modalities["text"].token_N[None]
    expected = bert(tokens, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(x_TD[layout.slab[1] : layout.slab[2]], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.heads["text"].decoder_weight, bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("blocks.unimodal.norm=pre", "unimodal_0 has norm: pre, BERT is post"),
        ("blocks.unimodal.ffn_dim=32", "ffn_dim 32, BERT 24"),
        ("blocks.unimodal.repeat=4", "it has 3 layers, the model 4 unimodal ones"),
        ("blocks.unimodal.ffn_weights=shared", "must update text with per_modality weights"),
        ("modalities.text.input.max_tokens=21", "position_embeddings.weight is"),
        ("hidden_size=32", "hidden_size is 16, model.hidden_size 32"),
        ("modalities.text.init_from=/nowhere", "name a local Hugging Face BERT directory"),
        ("modalities.image.init_from=/tmp", "cannot be read"),
    ],
)
def test_a_bert_that_does_not_fit_is_refused(tmp_path, bert, override, message):
    with pytest.raises(ValueError, match=message):
        load_initial_weights(build(spec_for(tmp_path, override)))


def test_missing_keys_are_listed_and_nothing_changes(tmp_path, bert):
    state = {key: value for key, value in bert.state_dict().items() if ".1.output.dense" not in key}
    bert.save_pretrained(tmp_path / "bert", state_dict=state)
    model = build(spec_for(tmp_path))
    before = model.embeddings.text_token.clone()
    with pytest.raises(ValueError, match=r"missing encoder.layer.1.output.dense.weight; missing .*bias"):
        load_initial_weights(model)
    assert torch.equal(before, model.embeddings.text_token)


def test_checkpoints_with_a_prefix_and_old_norm_names_load(tmp_path, bert):
    state = {
        f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in bert.state_dict().items()
    }
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "bert" / "pytorch_model.bin")
    model = build(spec_for(tmp_path))
    load_initial_weights(model)
    assert torch.equal(model.embeddings.text_norm_weight, bert.embeddings.LayerNorm.weight)


def test_a_model_without_init_from_is_left_alone(tmp_path):
    spec = tiny_spec(tmp_path)
    assert load_initial_weights(build(dataclasses.replace(spec))) == []
