"""Configurations are strict: what is misspelt or ill-typed is an error that names file and key."""

from pathlib import Path

import pytest

from m5ds import config, inputs
from m5ds.config import ConfigError

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "run" / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "run").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_run_loads_and_survives_a_round_trip(path):
    run = config.load(path)
    assert config.parse(run.to_dict(), "round trip") == run


def test_overrides_reach_nested_keys():
    run = config.load(QUICKSTART, ["train.total_steps=7", "model.blocks.unimodal.repeat=3"])
    assert run.train.total_steps == 7
    assert run.model.blocks["unimodal"].repeat == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.total_step=7", "unknown key train.total_step"),
        ("train.total_steps=abc", "train.total_steps: .*valid integer.*'abc'"),
        ("data.max_bad_fraction=2", "data.max_bad_fraction: .*less than or equal to 1"),
        ("model.modalities.image.input.size=47", "47 must be a positive multiple of"),
        (
            "model.modalities.scent={embedder: patches, head: regression, input: {kind: image_patches}}",
            "unknown modality",
        ),
        ("train.epochs=2", "exactly one of train.total_steps and train.epochs"),
        ("train.accumulation=7", "multiple of train.accumulation 7"),
        ("model.blocks.cross.num_heads=7", "must divide hidden_size"),
        ("model.blocks.cross.updates=[sound]", "names 'sound'"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_bad_overrides_name_file_and_key(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(QUICKSTART, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: [", "not valid YAML"), ("- a", "must hold a mapping"), ("name: x\nname: y", "not valid YAML")],
)
def test_unreadable_files_are_one_clear_line(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_or_base_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such configuration file"):
        config.load(tmp_path / "absent.yaml")
    path = tmp_path / "run.yaml"
    path.write_text("model: {base: nowhere.yaml}")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such configuration file"):
        config.load(path)


def test_base_is_overridden_key_by_key(tmp_path):
    (tmp_path / "base.yaml").write_text("hidden_size: 64\nnum_heads: 2\n")
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: x\nmodel: {base: base.yaml, hidden_size: 128, modalities: {text: {embedder: tokens, head: vocabulary,"
        " input: {kind: text_tokens}}}}\ntrain: {total_steps: 1}\n"
    )
    run = config.load(path)
    assert (run.model.hidden_size, run.model.num_heads) == (128, 2)


def test_a_mapping_of_another_kind_replaces_the_base_whole():
    run = config.load(ROOT / "configs" / "run" / "m5product_features.yaml")
    assert run.model.modalities["image"].input == inputs.RegionFeatures(max_regions=36, dim=2048)
    assert run.model.modalities["text"].input.kind == "text_tokens"


def test_values_may_refer_to_others_and_a_reference_to_nothing_is_named():
    run = config.load(QUICKSTART, ["model.ffn_dim=${model.hidden_size}"])
    assert run.model.ffn_dim == run.model.hidden_size
    with pytest.raises(ConfigError, match=r"quickstart\.yaml: .*nothing") as caught:
        config.load(QUICKSTART, ["model.ffn_dim=${nothing}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("without", [None, []])
def test_a_run_needs_no_overrides(without):
    assert config.load(QUICKSTART, without) == config.load(QUICKSTART)
    assert config.given_keys(QUICKSTART, without) == config.given_keys(QUICKSTART)


def test_a_table_of_bases_reaches_every_level(tmp_path):
    (tmp_path / "modality.yaml").write_text("embedder: tokens\nhead: vocabulary\ninput: {kind: text_tokens}\n")
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nmodel: {modalities: {text: {base: modality.yaml, mask_ratio: 0.5}}}\n")
    text = config.load(path, ["train.total_steps=1"]).model.modalities["text"]
    assert (text.embedder, text.head, text.mask_ratio) == ("tokens", "vocabulary", 0.5)


def test_a_kind_that_only_the_upper_file_names_replaces_the_lower_mapping(tmp_path):
    (tmp_path / "base.yaml").write_text("harmony: {weighs: both}\nobjectives: {contrastive: {weight: 2.0}}\n")
    path = tmp_path / "run.yaml"
    minimal = "modalities: {text: {embedder: tokens, head: vocabulary, input: {kind: text_tokens}}}"
    path.write_text(
        f"name: x\ntrain: {{total_steps: 1}}\nmodel:\n  base: base.yaml\n  {minimal}\n"
        "  harmony: {kind: learned}\n  objectives: {contrastive: {temperature: 0.5}}\n"
    )
    model = config.load(path).model
    assert (model.harmony.kind, model.harmony.weighs) == ("learned", "losses")
    assert model.objectives == {"contrastive": {"weight": 2.0, "temperature": 0.5}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.contrastive.pairs=all",
            r"unknown key model\.contrastive: .* it is model\.objectives\.contrastive, and its",
        ),
        (
            "model.harmony.masked=false",
            r"unknown key model\.harmony\.masked: .* it is said by model\.harmony\.objectives",
        ),
    ],
)
def test_keys_of_the_layout_before_objectives_say_where_they_are_now(override, message):
    with pytest.raises(ConfigError, match=message):
        config.load(QUICKSTART, [override])


@pytest.mark.parametrize(("cls", "legal"), [("learned", False), ("token", False), ("last", True), ("mean", True)])
def test_a_causal_modality_is_not_summarised_by_its_first_row(cls, legal):
    overrides = ["model.blocks.unimodal.causal=[text]", f"model.modalities.text.cls={cls}"]
    if legal:
        assert config.load(QUICKSTART, overrides).model.blocks["unimodal"].causal == ["text"]
        return
    with pytest.raises(ConfigError, match=rf"text\.cls is {cls}, but model\.blocks\.unimodal\.causal names text"):
        config.load(QUICKSTART, overrides)
