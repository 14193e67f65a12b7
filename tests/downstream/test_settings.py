"""The downstream configurations are strict, and the shipped ones load."""

import json
from pathlib import Path

import pytest

from m5ds import config as run_config
from m5ds.config import ConfigError
from m5ds.downstream import settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "downstream").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    assert settings.load(path).name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["classification.tuning=half"], "classification.tuning: .*'full', 'frozen' or 'lora'"),
        (["clasification.tuning=full"], "unknown key clasification"),
        (["coarse_retrieval.protocols=[textbook]"], "unknown protocol 'textbook'"),
        (["train.total_steps=5"], "exactly one of train.total_steps and train.epochs"),
        (["train.validate_every=0"], "patience needs train.validate_every"),
        (["test_split=validation"], "would choose the checkpoint on the split that is tested"),
        (["classification.beta=1.0"], "classification.beta"),
    ],
)
def test_wrong_values_are_named_in_one_line(overrides, message):
    base = next(path for path in CONFIGS if path.stem == "base")
    with pytest.raises(ConfigError, match=message) as error:
        settings.load(base, overrides)
    assert "\n" not in str(error.value)


def test_modalities_are_checked_against_the_model():
    config = settings.ClassificationConfig(modalities=["table", "image"])
    assert config.shown(("image", "text", "table")) == ("image", "table")
    with pytest.raises(ValueError, match="'table' is not one of the model's"):
        config.shown(("image", "text"))


def test_every_default_is_the_documented_one(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\n")
    found = settings.to_dict(settings.load(path))
    assert (found.pop("train")["epochs"], found.pop("data")["num_threads"]) == (5, run_config.DataConfig().num_threads)
    retrieval = {
        "ks": [1, 5, 10],
        "protocols": ["standard", "official"],
        "query_modalities": None,
        "gallery_modalities": None,
        "gallery_split": None,
        "states": "fused",
        "operation": "mean",
        "normalized": True,
        "instance": "product",
        "query_file": 1,
    }
    assert found == {
        "name": "small",
        "output_dir": "runs/downstream",
        "seed": 0,
        "batch_size": 32,
        "num_replicates": 1000,
        "frequency": "counts",
        "category_level": "leaf",
        "test_split": "test",
        "classification": {
            "modalities": None,
            "tuning": "full",
            "loss": "cross_entropy",
            "beta": 0.999,
            "tau": 1.0,
            "dense_size": 1024,
            "dropout": 0.1,
            "lora_rank": 8,
            "lora_alpha": 16.0,
            "label_fraction": 1.0,
            "patience": 0,
            "min_class_products": 2,
            "rare_classes": "error",
        },
        "linear_probe": {
            "modalities": None,
            "alone": None,
            "states": "fused",
            "operation": "mean",
            "inverse_regularization": [0.001, 0.01, 0.1, 1.0, 10.0, 100.0],
            "max_iterations": 200,
            "label_fractions": [0.05, 0.1, 0.2, 0.5, 1.0],
            "draws": 5,
        },
        "coarse_retrieval": retrieval,
        "instance_retrieval": retrieval,
        "clustering": {
            "num_clusters": None,
            "modalities": None,
            "states": "fused",
            "operation": "mean",
            "seeds": [0, 1, 2],
            "projection": "t-sne",
        },
        "robustness": {
            "policies": [],
            "by_modality": True,
            "rates": [0.0, 0.2, 0.4, 0.6, 0.8],
            "subsets": True,
            "noise_rates": [0.25, 0.5],
        },
    }


LIMITS = [
    ("classification.beta", [0.0, 0.9999], [-0.1, 1.0]),
    ("classification.tau", [0.0], [-0.1]),
    ("classification.dense_size", [1], [0]),
    ("classification.lora_rank", [1], [0]),
    ("classification.lora_alpha", [0.01], [0.0]),
    ("classification.label_fraction", [0.001, 1.0], [0.0, 1.001]),
    ("classification.min_class_products", [1], [0]),
    ("classification.patience", [0], [-1]),
    ("linear_probe.inverse_regularization", [[0.01]], [[], [0.0], [1.0, -1.0]]),
    ("linear_probe.max_iterations", [1], [0]),
    ("linear_probe.label_fractions", [[1.0], [0.001]], [[], [0.0], [1.01]]),
    ("linear_probe.draws", [1], [0]),
    ("coarse_retrieval.ks", [[1]], [[], [0]]),
    ("coarse_retrieval.protocols", [["standard"]], [[]]),
    ("instance_retrieval.query_file", [0], [-1]),
    ("clustering.num_clusters", [1], [0]),
    ("clustering.seeds", [[7]], [[]]),
    ("robustness.rates", [[0.0]], [[-0.1], [1.1]]),
    ("seed", [0], [-1]),
    ("batch_size", [1], [0]),
    ("num_replicates", [1], [0]),
    ("category_level", [1, "leaf"], [0, "root"]),
]


@pytest.mark.parametrize(("key", "accepted", "refused"), LIMITS, ids=[key for key, *_ in LIMITS])
def test_limits_of_a_setting_are_where_the_documentation_puts_them(key, accepted, refused, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\n")
    for value in accepted:
        tree = settings.to_dict(settings.load(path, [f"{key}={json.dumps(value)}"]))
        for part in key.split("."):
            tree = tree[part]
        assert tree == value
    for value in refused:
        with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
            settings.load(path, [f"{key}={json.dumps(value)}"])


def test_settings_that_contradict_each_other_are_refused_and_those_that_do_not_are_not(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\n")
    patient = ["classification.patience=1", "train.validate_every=5", "train.epochs=2"]
    assert settings.load(path, patient).classification.patience == 1
    assert settings.load(path, ["test_split=validation"]).test_split == "validation"
    assert settings.load(path, ["train.total_steps=3"]).train.total_steps == 3
    assert settings.load(path, ["coarse_retrieval.gallery_split=train"]).coarse_retrieval.gallery_split == "train"
    for overrides in (
        ["train.epochs=null"],
        ["train.total_steps=3", "train.epochs=2"],
        ["classification.patience=1", "train.epochs=2"],
        [*patient, "test_split=validation"],
        ["instance_retrieval.gallery_split=train"],
    ):
        with pytest.raises(ConfigError):
            settings.load(path, overrides)


def test_all_of_the_models_modalities_are_shown_unless_some_are_named():
    assert settings.ClassificationConfig().shown(("text", "table")) == ("text", "table")
