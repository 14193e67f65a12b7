"""Runs on each of three ranks (tests/dist/test_collectives.py): the collectives of m5ds.train.distributed."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from m5ds.train import distributed
from m5ds.train.distributed import RankError
from m5ds.train.faults import BadMediaBudget

SIZES = [2, 0, 3]
WIDTH = 4


def features() -> tuple[torch.Tensor, torch.Tensor]:
    """What all ranks hold together: features [5, 2, 4] and presence [5, 2]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(SIZES), 2, WIDTH, generator=generator), torch.rand(5, 2, generator=generator) > 0.3


def uneven_gather_is_exact() -> None:
    whole, present = features()
    rank = dist.get_rank()
    start = sum(SIZES[:rank])
    own = whole[start : start + SIZES[rank]].clone().requires_grad_()
    gather = distributed.feature_gather(SIZES)
    assert gather is not None
    gathered, gathered_present, offset = gather(own, present[start : start + SIZES[rank]])
    assert torch.equal(gathered.detach(), whole)
    assert torch.equal(gathered_present, present)
    assert offset == start
    # Each rank evaluates its own rows against all columns; together that is this one expression.
    (own.flatten(1) @ gathered.flatten(1).T).square().sum().backward()
    reference = whole.clone().requires_grad_()
    flat = reference.flatten(1)
    (flat @ flat.T).square().sum().backward()
    torch.testing.assert_close(own.grad, reference.grad[start : start + SIZES[rank]])


def error_of_one_rank_stops_all() -> None:
    rank = dist.get_rank()
    for failing in range(3):
        try:
            with distributed.stop_together():
                if rank == failing:
                    raise OSError(f"disk of rank {failing}\n is gone")
        except RankError as error:
            assert rank != failing
            source = "" if failing == 0 else f"rank {failing}: "
            assert str(error) == f"{source}disk of rank {failing} is gone"
        except OSError:
            assert rank == failing
        else:
            raise AssertionError("nothing raised")


def sums_carry_what_is_not_finite() -> None:
    rank = dist.get_rank()
    sums = distributed.sum_over_ranks({"a": 2.0**52 + rank, "b": float("nan") if rank == 1 else 1.0})
    assert sums["a"] == 3 * 2.0**52 + 3
    assert sums["b"] != sums["b"]


def damaged_files_of_all_ranks_reach_one_list(directory: Path) -> None:
    from m5ds.inputs.media import BadMedia

    budget = BadMediaBudget(directory / "bad_media.jsonl", 0.5)
    rank = dist.get_rank()
    for _ in range(2):
        local = [BadMedia(f"product-{rank}", "0.image.0.jpg", "truncated")] if rank else []
        budget.update(num_decoded=10, num_bad=2, local=local)
    distributed.barrier()
    lines = (directory / "bad_media.jsonl").read_text().splitlines()
    assert len(lines) == 2
    try:
        budget.update(num_decoded=2000, num_bad=1990, local=[])
    except RankError as error:
        assert "product-1/0.image.0.jpg (truncated), product-2/" in str(error)
    else:
        raise AssertionError("the budget was not spent")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    uneven_gather_is_exact()
    error_of_one_rank_stops_all()
    sums_carry_what_is_not_finite()
    damaged_files_of_all_ranks_reach_one_list(Path(sys.argv[1]))
    assert distributed.broadcast_object(dist.get_rank()) == 0
    assert distributed.gather_to_first(dist.get_rank()) == ([0, 1, 2] if dist.get_rank() == 0 else None)
    dist.barrier()
    dist.destroy_process_group()
