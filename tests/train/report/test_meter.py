"""Scalars of a step, from stubs of its job and clock."""

from types import SimpleNamespace

import pytest
import torch
from job_cases import Run

from m5ds.data.batches.random_batch import random_batch
from m5ds.train.engine import build as engine
from m5ds.train.report import flops
from m5ds.train.report import meter as metering
from m5ds.train.report.meter import Meter


@pytest.fixture
def started(monkeypatch, tmp_path):
    return lambda **options: Run(monkeypatch, tmp_path, **options)


def metered(started, monkeypatch, times, *, wait=0.5, tokens=None, **changes):
    """The scalars of one step that began and ended at `times`, and the job."""
    run = started(total=3)
    for name, value in changes.items():
        setattr(run.job.engine, name, value)
    monkeypatch.setattr(metering.time, "perf_counter", iter(times).__next__)
    meter = Meter(run.job)
    meter.start()
    names = run.model.names
    counts = {f"tokens/{name}": float(count) for name, count in zip(names, tokens or range(5), strict=True)}
    prepared = SimpleNamespace(wait_seconds=wait, micro_batches=[])
    return meter.stop(prepared, counts, {"total": 3.0, "mlm": 2.0}, 6), run, meter


def test_the_meter_reports_shares_rates_and_the_rate_before_the_update(started, monkeypatch) -> None:
    scalars, run, _ = metered(started, monkeypatch, [10.0, 12.0])
    shares = {f"tokens/share/{name}": number / 10 for number, name in enumerate(run.model.names)}
    assert scalars == pytest.approx(
        {
            "loss/total": 3.0,
            "loss/mlm": 2.0,
            **shares,
            "optimizer/gradient_norm": 2.5,
            "optimizer/learning_rate": 0.1,
            "optimizer/skipped_steps": 6.0,
            "throughput/tokens_per_second": 5.0,
            "throughput/products_per_second": 4.0,
            "data/wait_share": 0.25,
            "data/bad_media": 2.0,
        }
    )
    assert run.job.engine.num_rates == 1


def test_the_meter_adds_up_products_and_seconds_over_steps(started, monkeypatch) -> None:
    _, run, meter = metered(started, monkeypatch, [10.0, 12.0, 20.0, 25.0])
    assert run.job.totals == {"products": 8.0, "seconds": 2.0}
    meter.start()
    tokens = {f"tokens/{name}": 0.0 for name in run.model.names}
    scalars = meter.stop(SimpleNamespace(wait_seconds=9.0, micro_batches=[]), tokens, {}, 0)
    assert run.job.totals == {"products": 16.0, "seconds": 7.0}
    assert scalars["optimizer/learning_rate"] == pytest.approx(0.2)
    assert scalars["data/wait_share"] == 1.0, "a wait that began before the step is not more than all of it"
    assert [scalars[f"tokens/share/{name}"] for name in run.model.names] == [0.0] * 5


def test_a_step_of_one_token_has_shares_that_sum_to_one_and_no_norm_is_zero(started, monkeypatch) -> None:
    scalars, run, _ = metered(started, monkeypatch, [0.0, 1.0], tokens=[0, 1, 0, 0, 0], norm=None)
    assert [scalars[f"tokens/share/{name}"] for name in run.model.names] == [0, 1, 0, 0, 0]
    assert scalars["optimizer/gradient_norm"] == 0.0


def test_utilisation_is_the_flops_of_all_micro_batches_over_time_and_peak(started, monkeypatch) -> None:
    monkeypatch.setattr(flops, "device_peak", lambda device: 1e9)
    monkeypatch.setattr(metering.time, "perf_counter", iter([0.0, 4.0]).__next__)
    run = started(total=3)
    meter = Meter(run.job)
    batches = [random_batch(run.model.spec, [[True] * 5] * count, vocab_size=32) for count in (1, 2)]
    meter.start()
    tokens = {f"tokens/{name}": 1.0 for name in run.model.names}
    scalars = meter.stop(SimpleNamespace(wait_seconds=0.0, micro_batches=batches), tokens, {}, 0)
    counter = flops.FlopCounter(run.model.spec)
    done = counter.count(batches[0]) + counter.count(batches[1])
    assert scalars["throughput/flops_utilisation"] == pytest.approx(done / 4.0 / 1e9)
    assert done > 0


def test_a_gpu_is_waited_for_before_the_clock_is_read(started, monkeypatch) -> None:
    events: list = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(device))
    monkeypatch.setattr(flops, "device_peak", lambda device: None)
    gpu = torch.device("cuda", 1)
    metered(started, monkeypatch, [0.0, 1.0])
    assert events == []
    run = started(total=3)
    run.job.engine.device = gpu
    monkeypatch.setattr(metering.time, "perf_counter", lambda: events.append("clock") or float(len(events)))
    meter = Meter(run.job)
    meter.start()
    meter.stop(
        SimpleNamespace(wait_seconds=0.0, micro_batches=[]), {f"tokens/{n}": 1.0 for n in run.model.names}, {}, 0
    )
    assert events == ["clock", gpu, "clock"]


def test_logged_steps_tell_the_temperature_where_it_is_learned(started, monkeypatch) -> None:
    run = started(total=1)
    run.train()
    (record,) = (event[2] for event in run.events if event[0] == "record train")
    assert record["contrastive/temperature"] == 0.25 and record["loss/mlm"] == 0.5
    monkeypatch.setattr(engine, "logged_parameters", lambda model: {})
    assert Meter(run.job).parameters() == {}
