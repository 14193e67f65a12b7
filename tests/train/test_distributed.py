"""Collectives without a process group, and what a rank gives to torch.distributed and takes from it."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from m5ds.train import distributed
from m5ds.train.distributed import RankError


def test_one_process_needs_no_group() -> None:
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.collective_device() == torch.device("cpu")
    values = {"a": 1.5}
    summed = distributed.sum_over_ranks(values)
    assert summed == values and summed is not values
    assert distributed.gather_objects("x") == distributed.gather_to_first("x") == ["x"]
    assert distributed.broadcast_object("x") == "x"
    assert distributed.feature_gather([3]) is None
    distributed.barrier()


@pytest.fixture
def group(monkeypatch):
    """A group of three of which this process is rank 1; each collective answers what `answers` says."""
    made = SimpleNamespace(rank=1, backend="gloo", calls=[])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: made.rank)
    monkeypatch.setattr(dist, "get_backend", lambda: made.backend)
    monkeypatch.setattr(dist, "barrier", lambda: made.calls.append("barrier"))
    return made


def test_small_tensors_live_on_the_ranks_gpu_under_nccl_only(group, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert distributed.collective_device() == torch.device("cpu")
    group.backend = "nccl"
    assert distributed.collective_device() == torch.device("cuda", 2)


def test_sums_are_float64_by_name(group, monkeypatch) -> None:
    def all_reduce(flat: torch.Tensor) -> None:
        assert flat.dtype == torch.float64 and flat.device == torch.device("cpu")
        flat.mul_(3)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    assert distributed.sum_over_ranks({"a": 2.0**53 / 3, "b": 1}) == {"a": 2.0**53, "b": 3.0}
    monkeypatch.delattr(dist, "all_reduce")
    assert distributed.sum_over_ranks({}) == {}, "nothing to sum needs no collective"


def test_objects_go_to_all_or_to_the_first_rank(group, monkeypatch) -> None:
    def all_gather_object(gathered: list, value) -> None:
        gathered[:] = ["a", value, "c"]
        assert len(gathered) == 3

    def gather_object(value, gathered: list | None) -> None:
        group.calls.append(value)
        if gathered is not None:
            assert gathered == [None] * 3
            gathered[:] = [value, "b", "c"]

    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    monkeypatch.setattr(dist, "gather_object", gather_object)
    assert distributed.gather_objects("own") == ["a", "own", "c"]
    assert distributed.gather_to_first("own") is None and group.calls == ["own"]
    group.rank = 0
    assert distributed.gather_to_first("own") == ["own", "b", "c"]


def test_what_is_broadcast_comes_from_rank_0(group, monkeypatch) -> None:
    def broadcast(box: list, src: int, device: torch.device) -> None:
        assert (box, src, device) == (["own"], 0, torch.device("cpu"))
        box[0] = "first"

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    assert distributed.broadcast_object("own") == "first"
    distributed.barrier()
    assert group.calls == ["barrier"]


def test_the_lowest_failing_ranks_message_is_raised_with_its_rank(group) -> None:
    distributed.raise_first([None, None, None])
    with pytest.raises(RankError, match=r"^first$"):
        distributed.raise_first(["first", "second", None])
    with pytest.raises(RankError, match=r"^rank 1: second$"):
        distributed.raise_first([None, "second", "third"])


def test_a_failing_rank_raises_its_own_error_after_telling_the_others(group, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(distributed, "gather_objects", lambda value: told.append(value) or [None, value, "other"])
    error = ValueError("a\n b")
    with pytest.raises(ValueError, match="a\n b") as caught, distributed.stop_together():
        raise error
    assert caught.value is error and told == ["a b"]
    with pytest.raises(RankError, match="^rank 2: other$"), distributed.stop_together():
        pass
    assert told == ["a b", None]


def test_a_defect_leaves_at_once(group, monkeypatch) -> None:
    monkeypatch.delattr(dist, "all_gather_object")
    with pytest.raises(KeyError), distributed.stop_together():
        raise KeyError("ours")


@pytest.mark.parametrize("sizes", [[1, 2, 3], [2, 2, 2], [0, 2, 0], [0, 0, 0]])
def test_features_are_gathered_in_rank_order_and_their_gradients_summed(group, monkeypatch, sizes) -> None:
    """The other two ranks' rows are given; their gradients are as large again each."""
    sizes = list(sizes)
    own_size = sizes[1]
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(sum(sizes), 2, 3, generator=generator)
    present = torch.rand(sum(sizes), 2, generator=generator) > 0.5
    start = sizes[0]

    def all_gather(gathered: torch.Tensor, padded: torch.Tensor) -> None:
        assert padded.shape == (max(sizes), 2 * 3 + 2)
        rows = torch.cat([whole.flatten(1), present.float()], dim=1).split(sizes)
        for part, row in zip(gathered.view(3, max(sizes), 8), rows, strict=True):
            part.zero_()[: len(row)] = row
        assert torch.equal(padded[:own_size], rows[1]) and not padded[own_size:].any()

    def all_reduce(grad: torch.Tensor) -> None:
        assert grad.is_contiguous()
        grad.mul_(3)

    monkeypatch.setattr(dist, "all_gather_into_tensor", all_gather)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    gather = distributed.feature_gather(sizes)
    own = whole[start : start + own_size].clone().requires_grad_()
    features, presence, offset = gather(own, present[start : start + own_size])
    assert torch.equal(features, whole) and torch.equal(presence, present) and presence.dtype == torch.bool
    assert offset == start and not presence.requires_grad
    weight = torch.randn(whole.shape, generator=generator)
    (features * weight).sum().backward()
    assert torch.allclose(own.grad, 3 * weight[start : start + own_size])


def test_another_number_of_products_than_announced_is_a_defect(group) -> None:
    gather = distributed.feature_gather([1, 2, 3])
    with pytest.raises(AssertionError, match="3 products on rank 1, announced"):
        gather(torch.zeros(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))
