"""Reading a model for evaluation: what is refused, what a fingerprint covers, how a classifier's head is told apart."""

import json

import pytest
import torch
from downstream_examples import tiny_model

from m5ds.downstream.embed.pretrained import build_head, fingerprint, load_pretrained, load_weights, split_head
from m5ds.model.objectives.classification import ClassifierHead


def test_nothing_there_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"nowhere: no such checkpoint; name a run's folder or a Hugging Face directory"
    ):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no complete checkpoint.*name a run's folder or a step"):
        load_pretrained(tmp_path)


def test_a_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type must be m5mmt; export a run of this project"):
        load_pretrained(tmp_path)


def test_a_fingerprint_covers_names_values_and_the_head(tmp_path):
    model = tiny_model(tmp_path)
    head = ClassifierHead(80, 6, 3, dropout=0.0)
    before = fingerprint(model, None)
    assert before == fingerprint(tiny_model(tmp_path), None)
    with_head = fingerprint(model, head)
    assert with_head != before
    with torch.no_grad():
        head.output.bias[0] += 1e-6
    assert fingerprint(model, head) != with_head
    with torch.no_grad():
        model.blocks["cross_0"].ffn["audio"].fc2.bias[-1] += 1e-6
    assert fingerprint(model, None) != before


def test_a_fingerprint_does_not_depend_on_precision_of_storage_or_device_order(tmp_path):
    model = tiny_model(tmp_path).bfloat16()
    assert fingerprint(model, None) == fingerprint(model.float(), None)


def test_weights_of_an_encoder_and_a_head_are_told_apart():
    weights = {"a.b": torch.ones(1), "objectives.classification.head.dense.weight": torch.zeros(2)}
    encoder, head = split_head(weights)
    assert list(encoder) == ["a.b"] and list(head) == ["dense.weight"]
    plain = {"a.b": torch.ones(1)}
    assert split_head(plain) == (plain, None)


def test_a_head_is_built_from_its_weights():
    made = ClassifierHead(10, 6, 3, dropout=0.3)
    found = build_head(dict(made.state_dict()))
    assert not found.training
    values = torch.randn(4, 10)
    assert torch.equal(found.dense(values), made.dense(values))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), made.parameters(), strict=True))
    assert (found.dense.in_features, found.dense.out_features, found.output.out_features) == (10, 6, 3)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_name_both_shapes(tmp_path, change):
    model = tiny_model(tmp_path)
    weights = dict(model.state_dict())
    name = "blocks.cross_0.attention.image.qkv.bias"
    if change == "missing":
        del weights[name]
        message = rf"weight {name} has shape none, the model needs \(48,\)"
    elif change == "extra":
        weights["a"] = torch.ones(2)
        message = r"weight a has shape \(2,\), the model needs none"
    else:
        weights[name] = torch.ones(47)
        message = rf"weight {name} has shape \(47,\), the model needs \(48,\)"
    with pytest.raises(ValueError, match=f"here: {message}; the checkpoint belongs to another model"):
        load_weights(model, weights, "here")


def test_loaded_weights_are_the_given_ones_and_stay_tied(tmp_path):
    model, source = tiny_model(tmp_path), tiny_model(tmp_path)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    given = dict(source.state_dict())
    load_weights(model, given, "here")
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())
    assert model.objectives.masked.heads["text"].decoder_weight is model.embeddings.text_token


def test_an_untrained_export_has_its_seeds_weights(exported):
    plain = load_pretrained(exported, untrained=True)
    assert plain.run is None and plain.state is None and plain.head is None
    assert plain.source == f"{exported} (initial weights)" and not plain.model.training
    trained = load_pretrained(exported)
    assert trained.source == str(exported)
    assert all(value.dtype == torch.float32 for value in trained.model.parameters())
