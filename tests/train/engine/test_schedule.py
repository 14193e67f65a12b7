"""The learning rate's shape."""

import math

import pytest
import torch

from m5ds.train.engine import schedule


def rates(total: int, warmup: int) -> list[float]:
    return [schedule.factor(step, warmup_steps=warmup, total_steps=total) for step in range(total)]


def test_first_step_learns_and_warm_up_ends_at_the_peak() -> None:
    values = rates(100, 10)
    assert values[0] == 0.1
    assert values[9] == 1.0
    assert max(values) == 1.0


def test_rate_falls_to_the_floor_and_stays() -> None:
    values = rates(100, 10)
    assert all(later < earlier for earlier, later in zip(values[9:], values[10:], strict=False))
    assert abs(values[-1] - schedule.FLOOR) < 1e-9
    assert abs(schedule.factor(500, warmup_steps=10, total_steps=100) - schedule.FLOOR) < 1e-9


def test_warm_up_as_long_as_the_run_is_legal() -> None:
    assert rates(3, 3)[-1] == 1.0


def test_every_rate_is_the_printed_formula() -> None:
    values = rates(50, 20)
    assert values[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * done / 30)) / 2 for done in range(1, 31)]
    assert values[20:] == pytest.approx(cosine)


def test_the_optimizer_gets_the_peak_rate_times_the_factor() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule.warmup_cosine(4, 10)(optimizer)
    found = []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx([0.5 * value for value in rates(10, 4)])
