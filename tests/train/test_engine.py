"""What the optimizer is given: which parameters decay, and what the logs call the temperature."""

import math
from contextlib import nullcontext

import pytest
import torch
from model_cases import build, tiny_spec

from m5ds.train import engine


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
    model = build(tiny_spec(tmp_path, "contrastive.temperature=0.2"))
    assert engine.temperature(model) == pytest.approx(0.2)
    with torch.no_grad():
        model.contrastive.logit_scale.fill_(3.0)
    assert engine.temperature(model) == pytest.approx(math.exp(-3.0))
    assert engine.temperature(build(tiny_spec(tmp_path, "contrastive.learn_temperature=false"))) is None


def test_weights_are_partitioned_from_the_start_under_stage_3_only() -> None:
    for ds in ({}, {"zero_optimization": {}}, {"zero_optimization": {"stage": 2}}):
        assert isinstance(engine.partitioned(ds), nullcontext)
