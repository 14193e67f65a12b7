"""Low-rank adapters: an unchanged start, the adapters alone trained, and weights folded back by value."""

import math

import pytest
import torch
from downstream_examples import tiny_batch, tiny_model

from m5ds.downstream.finetuning.lora import add_adapters, merged
from m5ds.model.initialization import normal

peft = pytest.importorskip("peft")


@pytest.fixture
def pair(tmp_path):
    """(a model, the same with adapters of rank 3 and alpha 12)."""
    model, adapted = tiny_model(tmp_path), tiny_model(tmp_path)
    add_adapters(adapted, rank=3, alpha=12.0, seed=5)
    return model, adapted


def adapters(model):
    return {name: value for name, value in model.named_parameters() if "lora_" in name}


def test_the_model_starts_unchanged(pair):
    model, adapted = pair
    batch = tiny_batch(model)
    assert torch.equal(model(batch, masked=False).fused_BMD, adapted(batch, masked=False).fused_BMD)


def test_only_the_adapters_of_the_blocks_linear_layers_are_trained(pair):
    model, adapted = pair
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert trained == set(adapters(adapted))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("blocks.")
    ]
    assert {name.rpartition(".")[2] for name in linear} == {"qkv", "out", "fc1", "fc2"}
    assert len(trained) == 2 * len(linear)


def test_adapters_start_from_seed_and_name(pair):
    for name, value in adapters(pair[1]).items():
        if "lora_B" in name:
            assert not value.any() and value.shape[1] == 3
        else:
            assert value.shape[0] == 3
            assert torch.equal(value, normal(value.shape, 5, name, 1 / math.sqrt(value.shape[1])))


def test_folded_weights_compute_what_the_adapters_compute(pair):
    model, adapted = pair
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in adapters(adapted).values():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    weights = merged(dict(adapted.state_dict()), {"lora_alpha": 12.0, "lora_rank": 3})
    plain = model.state_dict()
    assert set(weights) == set(plain)
    name = next(name for name in plain if name.endswith("qkv.weight"))
    module = name.removesuffix(".weight")
    up, down = (adapted.state_dict()[f"{module}.lora_{part}.default.weight"] for part in "BA")
    torch.testing.assert_close(weights[name], plain[name] + 4.0 * up @ down)
    bias = f"{module}.bias"
    assert torch.equal(weights[bias], plain[bias])
    batch = tiny_batch(model)
    expected = adapted(batch, masked=False).fused_BMD
    assert not torch.allclose(expected, model(batch, masked=False).fused_BMD, atol=1e-3)
    model.load_state_dict(weights)
    torch.testing.assert_close(model(batch, masked=False).fused_BMD, expected, atol=1e-5, rtol=1e-4)


def test_weights_without_adapters_pass_unchanged(pair):
    weights = dict(pair[0].state_dict())
    assert merged(weights, {}) is weights
