"""Initial weights: a function of the seed and the parameter's name alone."""

import hashlib

import pytest
import torch
from torch import nn

from m5ds.model.initialization import gathered, generator_for, initialize, is_partitioned, normal


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(40, 50)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.full((3,), 9.0))
        self.zero = nn.Parameter(torch.full((3,), 9.0))
        self.text_norm_weight = nn.Parameter(torch.full((4,), 9.0))
        self.text_norm_bias = nn.Parameter(torch.full((4,), 9.0))
        self.table = nn.Parameter(torch.full((30, 40), 9.0))

    def initial_value(self, name):
        return {"scale": 2.5, "zero": 0.0}.get(name)


def test_every_parameter_is_filled_by_its_kind():
    model = nn.ModuleDict({"part": Part()})
    initialize(model, seed=3, std=0.02)
    part = model["part"]
    assert (part.scale == 2.5).all() and (part.zero == 0).all()
    assert (part.norm.weight == 1).all() and (part.norm.bias == 0).all()
    assert (part.text_norm_weight == 1).all() and (part.text_norm_bias == 0).all()
    assert (part.linear.bias == 0).all()
    assert torch.equal(part.linear.weight, normal(part.linear.weight.shape, 3, "part.linear.weight", 0.02))
    assert torch.equal(part.table, normal(part.table.shape, 3, "part.table", 0.02))
    assert abs(part.table.std().item() / 0.02 - 1) < 0.1 and abs(part.table.mean().item()) < 0.002


def test_the_values_depend_on_seed_and_name_alone():
    shape = torch.Size([4, 5])
    found = normal(shape, 1, "a", 0.5)
    torch.manual_seed(99)
    assert torch.equal(found, normal(shape, 1, "a", 0.5)) and found.dtype == torch.float32 and found.shape == shape
    assert not torch.equal(found, normal(shape, 2, "a", 0.5))
    assert not torch.equal(found, normal(shape, 1, "b", 0.5))
    torch.testing.assert_close(normal(shape, 1, "a", 1.0), 2 * found)
    # These bits are what checkpoints and documented runs started from.
    digest = hashlib.blake2b(b"1/a", digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    assert torch.equal(found, torch.normal(0.0, 0.5, (4, 5), generator=generator))
    assert (
        generator_for(1, "a").initial_seed()
        == torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True)).initial_seed()
    )


def test_a_top_level_parameter_has_its_bare_name():
    model = Part()
    initialize(model, seed=0, std=1.0)
    assert torch.equal(model.table, normal(model.table.shape, 0, "table", 1.0))


def test_tied_parameters_are_filled_once_under_their_first_name():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    initialize(model, seed=0, std=1.0)
    assert torch.equal(model["b"].weight, normal(torch.Size([3, 3]), 0, "a.weight", 1.0))


def test_parameters_without_storage_are_left_alone():
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    initialize(model, seed=0, std=1.0)
    assert model.weight.device.type == "meta"


def test_whole_parameters_need_no_gathering():
    parameter = nn.Parameter(torch.zeros(2))
    assert not is_partitioned(parameter)
    with gathered([parameter], writes=True):
        pass
    parameter.ds_id = 5
    assert is_partitioned(parameter)


@pytest.mark.parametrize(("writes", "rank"), [(True, 0), (False, None)])
def test_partitioned_parameters_are_gathered_and_only_they(monkeypatch, writes, rank):
    import deepspeed

    asked = []
    monkeypatch.setattr(
        deepspeed.zero,
        "GatheredParameters",
        lambda parameters, modifier_rank: asked.append((parameters, modifier_rank)),
    )
    whole, shard = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    shard.ds_id = 1
    gathered([whole, shard], writes=writes)
    ((parameters, modifier),) = asked
    assert len(parameters) == 1 and parameters[0] is shard and modifier == rank
