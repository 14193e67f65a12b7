"""The text encoder from a local Hugging Face encoder of the BERT family: the same states as transformers gives, or one
error that lists what does not fit.
"""

import json
from pathlib import Path

import pytest
import torch
from model_cases import VOCAB_SIZE, batch_of, build, tiny_spec
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    DistilBertConfig,
    MPNetConfig,
)

from m5ds.model.encoders import load as pretrained
from m5ds.model.encoders.load import load_initial_weights

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.5,
    "layer_norm_eps": 1e-5,
}
FITTING = ("blocks.unimodal.repeat=2", "blocks.unimodal.norm=post")


def settings_of(kind: str, **changes):
    own = {"embedding_size": 16} if kind == "electra" else {}
    return AutoConfig.for_model(kind, **{**SIZES, **own, **changes})


def encoder_in(folder: Path, kind: str = "bert", *, make=AutoModel, **changes):
    """A randomly initialised encoder, norms and biases included, saved in the folder."""
    torch.manual_seed(0)
    model = make.from_config(settings_of(kind, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def bert(tmp_path):
    return encoder_in(tmp_path / "bert")


def spec_for(tmp_path, *overrides):
    return tiny_spec(tmp_path, *FITTING, f"modalities.text.init_from={tmp_path}/bert", *overrides)


def text_states(model, spec, num_layers: int = 2) -> tuple[Tensor, Tensor]:
    """(token ids [1, N] of one product's text, its states after the layers of that number)."""
    batch = batch_of(spec, [[True] * 5], full=True)
    states = []
    model.blocks[f"unimodal_{num_layers - 1}"].register_forward_hook(
        lambda module, args, output: states.append((args[1], output))
    )
    model(batch, masked=False)
    layout, x_TD = states[0]
    return batch.modalities["text"].token_N[None], x_TD[layout.slab[1] : layout.slab[2]]


def test_unimodal_text_states_are_those_of_the_bert(tmp_path, bert):
    spec = spec_for(tmp_path)
    model = build(spec).eval()
    filled = load_initial_weights(model)
    assert len(filled) == len(set(filled)) == 5 + 2 * 12
    tokens, found = text_states(model, spec)
    expected = bert(tokens, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.objectives.masked.heads["text"].decoder_weight, bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
@pytest.mark.parametrize("make", [AutoModel, AutoModelForMaskedLM], ids=["bare", "with_head"])
def test_every_family_gives_the_states_that_transformers_gives(tmp_path, kind, make):
    """A RoBERTa's positions begin at pad_token_id + 1; read as a BERT its states were 1.34 off."""
    source = encoder_in(tmp_path / "bert", kind, make=make, layer_norm_eps=3e-3)
    spec = spec_for(tmp_path, "layer_norm_eps=3e-3")
    model = build(spec).eval()
    load_initial_weights(model)
    tokens, found = text_states(model, spec)
    expected = source(tokens, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_the_positions_of_a_roberta_follow_its_padding(tmp_path, padding):
    source = encoder_in(tmp_path / "bert", "roberta", pad_token_id=padding, max_position_embeddings=padding + 7)
    spec = spec_for(tmp_path)  # max_tokens is 6: the table is used to its last row
    model = build(spec).eval()
    load_initial_weights(model)
    expected = source.embeddings.position_embeddings.weight[padding + 1 : padding + 7]
    assert torch.equal(model.embeddings.text_position, expected)
    assert torch.equal(model.embeddings.text_modality, source.embeddings.token_type_embeddings.weight[0])


@pytest.mark.parametrize("activation", ["gelu", "relu", "quick_gelu"])
@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_states_agree_for_every_activation_and_epsilon(tmp_path, activation, eps):
    source = encoder_in(tmp_path / "bert", hidden_act=activation, layer_norm_eps=eps)
    spec = spec_for(tmp_path, f"layer_norm_eps={eps}", f"blocks.unimodal.activation={activation}")
    model = build(spec).eval()
    load_initial_weights(model)
    tokens, found = text_states(model, spec)
    expected = source(tokens, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_in_half_precision_is_read_as_its_values(tmp_path, bert):
    bert.half().save_pretrained(tmp_path / "bert")
    model = build(spec_for(tmp_path))
    load_initial_weights(model)
    assert model.embeddings.text_token.dtype == torch.float32
    assert torch.equal(model.embeddings.text_token, bert.embeddings.word_embeddings.weight.float())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("blocks.unimodal.norm=pre", r"post-norm, set model\.blocks\.unimodal\.norm=post \(now pre\)"),
        (
            "blocks.unimodal.ffn_dim=32",
            r"intermediate_size is 24, set model\.blocks\.unimodal\.ffn_dim to it \(now 32\)",
        ),
        (
            "blocks.unimodal.num_heads=4",
            r"num_attention_heads is 2, set model\.blocks\.unimodal\.num_heads .*\(now 4\)",
        ),
        (
            "blocks.unimodal.activation=relu",
            r"hidden_act is gelu, set model\.blocks\.unimodal\.activation .*\(now relu\)",
        ),
        ("blocks.unimodal.repeat=4", r"num_hidden_layers is 3, .*repeat .*\(now 4\)"),
        ("blocks.unimodal.ffn_weights=shared", r"set model\.blocks\.unimodal\.ffn_weights=per_modality"),
        ("blocks.unimodal.attention_weights=shared", r"set model\.blocks\.unimodal\.attention_weights=per_modality"),
        ("blocks.unimodal.updates=[image]", r"add it to model\.blocks\.unimodal\.updates"),
        ("blocks.unimodal.causal=[text]", r"take text out of model\.blocks\.unimodal\.causal"),
        (
            "blocks.unimodal.visibility={image: [image], text: [], table: [table], video: [video], audio: [audio]}",
            r"let text see itself in model\.blocks\.unimodal\.visibility",
        ),
        (
            "modalities.text.input.max_tokens=21",
            r"leaves 20 positions, set model\.modalities\.text\.input\.max_tokens .*\(now 21\)",
        ),
        ("hidden_size=32", r"hidden_size is 16, set model\.hidden_size to it \(now 32\)"),
        ("layer_norm_eps=1e-6", r"set model\.layer_norm_eps=1e-05 \(now 1e-06\)"),
        ("modalities.text.init_from=/nowhere", "name a local Hugging Face BERT directory"),
        ("modalities.image.init_from=/tmp", "cannot be read"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_to_set(tmp_path, bert, override, message):
    overrides = (override, "modalities.text.cls=last") if "causal" in override else (override,)
    with pytest.raises(ValueError, match=message) as caught:
        load_initial_weights(build(spec_for(tmp_path, *overrides)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 41}, r"vocab_size is 41, set data\.tokenizer to its own \(now 40 tokens\)"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"hidden_act": "gelu_new"}, "hidden_act is gelu_new, which no block computes: gelu, quick_gelu, relu"),
        ({"hidden_act": "silu"}, "hidden_act is silu, which no block computes"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is relative_key"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"layer_norm_eps": 1e-12}, r"set model\.layer_norm_eps=1e-12 \(now 1e-05\)"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(tmp_path, changes, message):
    settings_of("bert", **changes).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=message):
        load_initial_weights(build(spec_for(tmp_path)))


def test_what_to_set_for_another_epsilon_is_read_by_yaml_as_a_number(tmp_path):
    """Some YAML readers take 1e-12 for a string; the message must not send the user into a second error."""
    encoder_in(tmp_path / "bert", layer_norm_eps=1e-12)
    with pytest.raises(ValueError, match="layer_norm_eps") as caught:
        load_initial_weights(build(spec_for(tmp_path)))
    override = str(caught.value).partition("set model.")[2].partition(" ")[0]
    load_initial_weights(build(spec_for(tmp_path, override)))


def test_everything_that_does_not_fit_is_listed_once(tmp_path):
    settings_of("bert", num_attention_heads=4, layer_norm_eps=1e-7).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="does not fit model.modalities.text") as caught:
        load_initial_weights(build(spec_for(tmp_path)))
    clauses = str(caught.value).partition("model.modalities.text: ")[2].split("; ")
    assert [clause.split()[0] for clause in clauses] == ["its", "num_attention_heads"]


@pytest.mark.parametrize(
    "settings", [DistilBertConfig(), AlbertConfig(), MPNetConfig()], ids=lambda settings: settings.model_type
)
def test_an_encoder_of_another_family_is_refused_by_name(tmp_path, settings):
    settings.save_pretrained(tmp_path / "bert")
    message = f"model_type {settings.model_type} is not read, only bert, camembert, electra, roberta, xlm-roberta"
    with pytest.raises(ValueError, match=message):
        load_initial_weights(build(spec_for(tmp_path)))


def test_an_electra_with_a_projection_is_refused(tmp_path):
    settings_of("electra", embedding_size=8).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="embedding_size is 8, not its hidden_size"):
        load_initial_weights(build(spec_for(tmp_path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "names no model_type"),
        ('{"hidden_size": 16}', 'names no model_type; write "model_type": "bert" into it'),
        ('{"model_type": "bert", "hidden_size": "wide"}', "hidden_size.*expected int, got str"),
    ],
)
def test_a_damaged_configuration_is_one_line(tmp_path, text, message):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_initial_weights(build(spec_for(tmp_path)))
    assert "\n" not in str(caught.value)


def test_settings_that_config_json_leaves_out_are_those_of_its_family(tmp_path, bert):
    path = tmp_path / "bert" / "config.json"
    tree = json.loads(path.read_text())
    del tree["layer_norm_eps"]
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="model.layer_norm_eps=1e-12"):
        load_initial_weights(build(spec_for(tmp_path)))


def test_only_modalities_of_tokens_start_from_a_bert(tmp_path, bert):
    with pytest.raises(ValueError, match=r"model.modalities.image.init_from: only modalities of tokens"):
        load_initial_weights(build(tiny_spec(tmp_path, *FITTING, f"modalities.image.init_from={tmp_path}/bert")))


def test_missing_keys_are_listed_and_nothing_changes(tmp_path, bert):
    state = {key: value for key, value in bert.state_dict().items() if ".1.output.dense" not in key}
    bert.save_pretrained(tmp_path / "bert", state_dict=state)
    model = build(spec_for(tmp_path))
    before = model.embeddings.text_token.clone()
    with pytest.raises(ValueError, match=r"missing encoder.layer.1.output.dense.weight; missing .*bias"):
        load_initial_weights(model)
    assert torch.equal(before, model.embeddings.text_token)


def test_weights_of_another_shape_than_their_configuration_are_refused(tmp_path, bert):
    state = {**bert.state_dict(), "encoder.layer.0.intermediate.dense.bias": torch.zeros(25)}
    bert.save_pretrained(tmp_path / "bert", state_dict=state)
    message = r"intermediate.dense.bias is \[25\], blocks.unimodal_0.ffn.text.fc1.bias needs \[24\]"
    with pytest.raises(ValueError, match=message):
        load_initial_weights(build(spec_for(tmp_path)))


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
    assert torch.equal(model.embeddings.text_norm_bias, bert.embeddings.LayerNorm.bias)


def test_a_directory_without_weights_is_refused(tmp_path, bert):
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor pytorch_model.bin"):
        load_initial_weights(build(spec_for(tmp_path)))


def test_a_pickle_that_holds_more_than_tensors_is_not_run(tmp_path, bert):
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Path("code")}, tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        pretrained.bert_values(build(spec_for(tmp_path)), "text", tmp_path / "bert")


def test_a_model_without_init_from_is_left_alone(tmp_path):
    model = build(tiny_spec(tmp_path))
    before = {name: value.clone() for name, value in model.named_parameters()}
    assert load_initial_weights(model) == []
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


@pytest.mark.parametrize("layers", [1, 3])
def test_a_bert_may_have_as_many_layers_as_are_filled_or_more(tmp_path, bert, layers):
    spec = spec_for(tmp_path, f"blocks.unimodal.repeat={layers}")
    model = build(spec).eval()
    assert len(load_initial_weights(model)) == 5 + 12 * layers
    tokens, found = text_states(model, spec, layers)
    expected = bert(tokens, output_hidden_states=True).hidden_states[layers][0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_single_token_type_is_enough(tmp_path):
    source = encoder_in(tmp_path / "bert", type_vocab_size=1)
    model = build(spec_for(tmp_path))
    load_initial_weights(model)
    assert torch.equal(model.embeddings.text_modality, source.embeddings.token_type_embeddings.weight[0])


def test_only_the_layers_before_fusion_are_filled(tmp_path, bert):
    model = build(spec_for(tmp_path))
    before = {name: value.clone() for name, value in model.named_parameters()}
    filled = set(load_initial_weights(model))
    changed = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert changed == filled
    assert not any("cross" in name or "image" in name for name in filled)
