"""toy_uniformity.py and toy_uniformity.yaml, and no other file, add a loss (CONTRIBUTING.md)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_cases import all_patterns, batch_of, build, run
from plugin_scope import forgotten

from m5ds import config
from m5ds.config import ConfigError
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.specs import resolved
from m5ds.train.engine import build as engine
from m5ds.train.report import summary
from m5ds.train.step import TrainStep
from m5ds.train.validation import Sums

ROOT = Path(__file__).resolve().parents[3]
YAML = ROOT / "tests/model/objectives/toy_uniformity.yaml"


@pytest.fixture
def model(monkeypatch):
    """Where a run starts: plugins' paths are relative to the working directory."""
    monkeypatch.chdir(ROOT)
    with forgotten():
        spec = resolved(config.load(YAML).model, str(YAML))
        assert spec.objectives["spread"] == {"kind": "toy_uniformity", "weight": 0.5, "sharpness": 3.0}
        yield build(spec)


class Engine:
    """Stands for DeepSpeed's engine, with plain gradient descent."""

    device = torch.device("cpu")

    def __init__(self, model, parts: int) -> None:
        self.model, self.parts, self.train, self.eval = model, parts, model.train, model.eval

    def __call__(self, *given, **options):
        return self.model(*given, **options)

    def backward(self, loss) -> None:
        (loss / self.parts).backward()

    def step(self) -> None:
        pass

    def was_step_applied(self) -> bool:
        return True


def test_a_step_counts_and_minimises_it_beside_the_others(model, tmp_path):
    """Harmony weighs what is about modalities; this loss is about products, and keeps its own weight."""
    batch = batch_of(model.spec, all_patterns())
    step = TrainStep(Engine(model, 1), model, seed=7, precision="fp32", directory=tmp_path)
    counts = step.count(SimpleNamespace(micro_batches=[batch], num_decoded=0, bad_media=[]), 0)
    assert counts["spread"] == 31 and "spread" not in {term.name for _, term in model.harmonised}
    losses = step([batch], counts)
    assert 0.0 < losses["spread"] <= 1.0 and {"mlm", "itc/image-text", "total"} <= set(losses)
    own = dict(model.named_parameters())["objectives.spread.mix.weight"]
    assert own.grad is not None and own.grad.any()
    alone = run(model, batch, chosen=("spread",))
    assert alone.loss.item() == pytest.approx(0.5 * losses["spread"], rel=1e-5)


def test_accumulation_adds_its_parts_up(model, tmp_path):
    """Its sums are over products: a loss over pairs of products of the global batch would set `global_loss`."""
    batches = [batch_of(model.spec, all_patterns()[:16]), batch_of(model.spec, all_patterns()[16:])]
    step = TrainStep(Engine(model, 2), model, seed=7, precision="fp32", directory=tmp_path)
    counts = step.count(SimpleNamespace(micro_batches=batches, num_decoded=0, bad_media=[]), 0)
    losses = step(batches, counts)
    wanted = {name: int(counts[name]) for name in ("products", "spread")}
    sums = [run(model, batch, counts=wanted, chosen=("spread",)).losses["spread"].item() for batch in batches]
    assert losses["spread"] == pytest.approx(sum(sums), rel=1e-5)


def test_validation_the_log_and_the_closing_table_show_it(model):
    job = SimpleNamespace(model=model.eval(), engine=Engine(model, 1), objectives=None, config=SimpleNamespace(seed=7))
    sums = Sums(job)
    with torch.no_grad():
        sums.add(batch_of(model.spec, all_patterns()))
    report = sums.report()
    assert 0.0 < report["loss/spread"] <= 1.0 and report["spread/length"] > 0.0
    ends = SimpleNamespace(first_and_last=lambda kind: ({"loss/spread": 0.9}, {"loss/spread": 0.5}))
    assert ["training", "spread", "0.9000", "0.5000"] in [line.split() for line in summary._losses(ends)]
    assert set(engine.logged_parameters(model)) == {"contrastive/temperature"}


def test_it_survives_a_checkpoints_configuration_and_an_export(model, tmp_path):
    run_config = config.load(YAML)
    again = config.parse(run_config.to_dict(), "state.json")
    assert again.model.objectives == run_config.model.objectives
    settings = M5Config.from_spec(model.spec, vocab_size=40, mask_id=4, special_ids=[0, 1, 2, 3, 4])
    M5ForPretraining(settings).save_pretrained(tmp_path / "exported")
    loaded = M5ForPretraining.from_pretrained(tmp_path / "exported")
    assert list(loaded.objectives) == ["masked", "contrastive", "spread"]
    assert loaded.objectives["spread"].sharpness == 3.0


def test_without_its_plugin_the_kind_is_unknown_and_said_in_one_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        YAML.read_text().split("plugins:")[0] + YAML.read_text().split("\n", 2)[2].replace("../../../", f"{ROOT}/")
    )
    with forgotten(), pytest.raises(ConfigError, match=r"objectives.spread: unknown kind 'toy_uniformity'; known: "):
        resolved(config.load(path).model, str(path))
