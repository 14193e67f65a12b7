"""What the optimizer is given: which parameters decay, and what the logs call the temperature."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from model_cases import build, tiny_spec

from m5ds import config
from m5ds.train.engine import build as engine
from m5ds.train.engine import schedule

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("base", ["m5mmt", "scale"])
def test_matrices_alone_decay_and_every_parameter_is_given_once(tmp_path, base) -> None:
    model = build(tiny_spec(tmp_path, "absent=token", "blocks.cross.norm=post", base=base))
    decaying, others = engine.parameter_groups(model, 0.125)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.125, 0.0)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [[named[id(parameter)] for parameter in group["params"]] for group in (decaying, others)]
    assert sorted(names[0] + names[1]) == sorted(named.values())
    matrices = ("qkv.weight", "out.weight", "fc1.weight", "fc2.weight", "projection.weight", "decoder.weight")
    matrices += ("transform.weight", "_token", "_position", "_part")
    assert sorted(names[0]) == sorted(name for name in named.values() if name.endswith(matrices))
    assert all(
        name.startswith(("absent.", "harmony.")) or parameter.dim() == 1
        for name, parameter in ((named[id(parameter)], parameter) for parameter in others["params"])
    )


def test_temperature_is_the_inverse_of_the_logit_scale(tmp_path) -> None:
    model = build(tiny_spec(tmp_path, "objectives.contrastive.temperature=0.2"))
    assert engine.logged_parameters(model) == {"contrastive/temperature": pytest.approx(0.2)}
    with torch.no_grad():
        model.objectives.contrastive.logit_scale.fill_(3.0)
    assert engine.logged_parameters(model) == {"contrastive/temperature": pytest.approx(math.exp(-3.0))}
    fixed = build(tiny_spec(tmp_path, "objectives.contrastive.learn_temperature=false"))
    assert engine.logged_parameters(fixed) == {}


def test_weights_are_partitioned_from_the_start_under_stage_3_only(monkeypatch) -> None:
    for ds in ({}, {"zero_optimization": {}}, {"zero_optimization": {"stage": 2}}):
        assert isinstance(engine.partitioned(ds), nullcontext)
    marker = nullcontext()
    monkeypatch.setattr(deepspeed.zero, "Init", lambda **given: (marker, given)[0] if given == asked else None)
    asked = {"config_dict_or_path": {"zero_optimization": {"stage": 3}}}
    assert engine.partitioned({"zero_optimization": {"stage": 3}}) is marker


@pytest.mark.parametrize("resumes", [False, True])
def test_a_model_is_built_partitioned_from_the_runs_seed_and_read_from_disk_only_when_new(monkeypatch, resumes) -> None:
    events, made = [], []

    class Recorded(nullcontext):
        def __enter__(self):
            events.append("partitioned")

        def __exit__(self, *exception):
            events.append("whole")

    def model_of(model_config):
        events.append("model")
        made.append(model_config)
        return "model"

    monkeypatch.setattr(engine, "partitioned", lambda ds: Recorded() if ds == {"the": "json"} else None)
    monkeypatch.setattr(engine, "M5ForPretraining", model_of)
    monkeypatch.setattr(engine, "load_initial_weights", lambda model: events.append(f"weights of the {model}"))
    run = config.load(ROOT / "configs/run/quickstart.yaml", ["seed=7", "train.activation_checkpointing=true"])
    tokenizer = SimpleNamespace(vocab_size=33, mask_id=4, pad_id=0, special_ids=frozenset({0, 4}))
    assert engine.build_model(run, tokenizer, {"the": "json"}, resumes=resumes) == "model"
    assert events == ["partitioned", "model", "whole"] + ([] if resumes else ["weights of the model"])
    (made_of,) = made
    assert (made_of.vocab_size, made_of.initializer_seed, made_of.activation_checkpointing) == (33, 7, True)
    assert made_of.spec == run.model


def test_deepspeed_gets_model_groups_and_our_schedule_unless_the_json_has_one(tmp_path, monkeypatch) -> None:
    asked: dict = {}

    def initialize(**given):
        asked.update(given)
        return "engine", "optimizer", "loader", "scheduler"

    def warmup_cosine(*steps: int):
        return ("our schedule", *steps)

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    monkeypatch.setattr(schedule, "warmup_cosine", warmup_cosine)
    model = build(tiny_spec(tmp_path))
    run = config.load(ROOT / "configs/run/quickstart.yaml", ["train.weight_decay=0.125", "train.warmup_ratio=0.25"])
    assert engine.initialize(model, run, {"a": 1}, 40) == "engine"
    groups = asked.pop("model_parameters")
    assert [group["weight_decay"] for group in groups] == [0.125, 0.0]
    ours = {"model": model, "config": {"a": 1}, "lr_scheduler": ("our schedule", 10, 40), "dist_init_required": False}
    assert asked == ours
    engine.initialize(model, run, {"scheduler": {"type": "WarmupLR"}}, 40)
    assert asked["lr_scheduler"] is None


def test_the_temperature_is_read_from_the_optimizers_copy_where_there_is_one(tmp_path, monkeypatch) -> None:
    """Under bf16 the module's own scale is rounded."""
    model = build(tiny_spec(tmp_path))
    monkeypatch.setattr(engine, "safe_get_full_fp32_param", lambda parameter: torch.tensor(2.0))
    assert engine.logged_parameters(model) == {"contrastive/temperature": pytest.approx(math.exp(-2.0))}


def test_every_objective_shows_its_own_parameters(tmp_path, monkeypatch) -> None:
    sigmoid = "objectives.sigmoid={temperature: 0.05, bias: -3.0}"
    model = build(tiny_spec(tmp_path, sigmoid, "objectives.contrastive.temperature=0.2"))
    assert engine.logged_parameters(model) == {
        "contrastive/temperature": pytest.approx(0.2),
        "sigmoid/temperature": pytest.approx(0.05),
        "sigmoid/bias": pytest.approx(-3.0),
    }
    asked: list = []
    monkeypatch.setattr(engine, "safe_get_full_fp32_param", asked.append)
    engine.logged_parameters(model)
    own = model.objectives
    wanted = [own.contrastive.logit_scale, own.sigmoid.logit_scale, own.sigmoid.logit_bias]
    assert [id(one) for one in asked] == [id(one) for one in wanted], "a collective each, in one order on all ranks"
    alone = build(tiny_spec(tmp_path, sigmoid, "objectives.contrastive=null"))
    assert set(engine.logged_parameters(alone)) == {"sigmoid/temperature", "sigmoid/bias"}
    none = build(tiny_spec(tmp_path, "objectives.contrastive=null"))
    assert engine.logged_parameters(none) == {}
