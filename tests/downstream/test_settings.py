"""The downstream configurations are strict, and the shipped ones load."""

from pathlib import Path

import pytest

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
