"""Sections of `model.objectives`: strict, in order, with their defaults, and left out by null."""

from dataclasses import asdict

import pytest
from model_cases import build, tiny_spec

from m5ds.config import ConfigError
from m5ds.model.configuration import M5Config
from m5ds.model.objectives.contrastive import Contrastive, ContrastiveConfig
from m5ds.model.objectives.masked import Masked, MaskedConfig
from m5ds.model.objectives.specs import resolved, specs


def test_the_name_is_the_kind_unless_the_section_says_another():
    found = specs({"contrastive": {"pairs": "all"}, "masked": {}, "again": {"kind": "contrastive", "weight": 2.0}})
    assert list(found) == ["contrastive", "masked", "again"]
    assert found["contrastive"] == (Contrastive, ContrastiveConfig(pairs="all"))
    assert found["masked"] == (Masked, MaskedConfig())
    assert found["again"] == (Contrastive, ContrastiveConfig(weight=2.0))


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        ("masked", {"weight": 1.0}),
        (
            "contrastive",
            {"pairs": "chain", "weight": 1.0, "temperature": 0.1, "learn_temperature": True, "positives": "product"},
        ),
        ("sigmoid", {"pairs": "chain", "weight": 1.0, "temperature": 0.1, "bias": -10.0, "positives": "product"}),
    ],
)
def test_what_a_section_leaves_out_has_these_values(kind, defaults):
    assert asdict(specs({kind: {}})[kind][1]) == defaults


@pytest.mark.parametrize(
    ("kind", "key", "least", "below"),
    [
        ("masked", "weight", 0.0, -0.5),
        ("contrastive", "weight", 0.0, -0.5),
        ("contrastive", "temperature", 0.01, 0.0),
        ("sigmoid", "weight", 0.0, -0.5),
        ("sigmoid", "temperature", 0.01, 0.0),
    ],
)
def test_the_smallest_legal_value_is_taken_and_a_smaller_one_refused_by_name(kind, key, least, below):
    assert getattr(specs({kind: {key: least}})[kind][1], key) == least
    with pytest.raises(ConfigError, match=f"model.objectives.{kind}.{key}"):
        specs({kind: {key: below}})


def test_null_leaves_an_objective_out():
    assert list(specs({"masked": {}, "contrastive": None})) == ["masked"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"matching": {}},
            r"run.yaml: model.objectives.matching: unknown kind 'matching'; known: .*contrastive, masked",
        ),
        ({"own": {"kind": "no"}}, r"model.objectives.own: unknown kind 'no'"),
        ({"masked": {"wieght": 1.0}}, r"run.yaml: unknown key model.objectives.masked.wieght; remove it or correct"),
        ({"masked": {"weight": "1"}}, r"run.yaml: model.objectives.masked.weight: .* got '1'"),
        ({"contrastive": {"temperature": 0.0}}, r"model.objectives.contrastive.temperature: .* greater than 0"),
        ({"contrastive": {"pairs": "none"}}, r"model.objectives.contrastive.pairs"),
    ],
)
def test_a_wrong_section_is_one_line_with_file_and_key(sections, message):
    with pytest.raises(ConfigError, match=message):
        specs(sections, "run.yaml")


def test_resolving_fills_in_every_key_and_is_done_once(tmp_path):
    spec = tiny_spec(tmp_path, "objectives.contrastive.weight=2.5")
    once = resolved(spec, "x")
    assert once.objectives["contrastive"]["kind"] == "contrastive" and once.objectives["contrastive"]["weight"] == 2.5
    assert once.objectives["contrastive"]["learn_temperature"] is True and once.objectives["masked"]["weight"] == 1.0
    assert resolved(once, "x") == once


def test_a_saved_configuration_keeps_the_order_of_objectives(tmp_path):
    """Hugging Face sorts the keys of config.json; harmony's scores and the parameters follow the order."""
    spec = tiny_spec(tmp_path, "harmony={kind: learned}")
    assert list(spec.objectives) == ["masked", "contrastive"]
    M5Config.from_spec(spec, vocab_size=40, mask_id=4).save_pretrained(tmp_path / "saved")
    again = M5Config.from_pretrained(tmp_path / "saved").spec
    assert list(again.objectives) == ["masked", "contrastive"] and again == spec


def test_two_objectives_of_one_kind_have_their_own_parameters_and_weights(tmp_path):
    model = build(tiny_spec(tmp_path, "objectives.second={kind: sigmoid, pairs: [[text, image]], weight: 0.5}"))
    names = {name for name, _ in model.named_parameters() if name.startswith("objectives.")}
    assert {"objectives.contrastive.logit_scale", "objectives.second.logit_scale"} <= names
    assert model.objectives["second"].terms[0].weight == 0.5


def test_two_objectives_of_one_kind_never_share_a_name(tmp_path):
    """A shared name would show one loss and divide both by one count."""
    model = build(
        tiny_spec(tmp_path, "objectives.second={kind: contrastive, pairs: [[image, text]], temperature: 0.5}")
    )
    assert [term.name for term in model.objectives["second"].terms] == ["second/image-text"]
    shown = [name for _, one in model.objectives.chosen() for name in one.logged_parameters()]
    assert shown == ["contrastive/temperature", "second/temperature"]
    with pytest.raises(ValueError, match=r"model.objectives.again and masked both have a loss mrp; leave one out"):
        build(tiny_spec(tmp_path, "objectives.again={kind: masked}"))


def test_a_model_without_masks_or_pairs_has_no_such_objective(tmp_path):
    ratios = [f"modalities.{name}.mask_ratio=0.0" for name in ("image", "text", "table", "video", "audio")]
    assert list(build(tiny_spec(tmp_path, *ratios)).objectives) == ["contrastive"]
    assert list(build(tiny_spec(tmp_path, "objectives.contrastive.pairs=[]")).objectives) == ["masked"]
