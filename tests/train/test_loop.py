"""The training loop and its meter with stubs for the step, the engine and what is written."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_cases import build, tiny_spec

from m5ds.config import TrainConfig
from m5ds.data.batches.random_batch import random_batch
from m5ds.train import loop
from m5ds.train.report import flops

CPU = torch.device("cpu")


class Engine:
    device = CPU
    norm: float | None = 2.5

    def __init__(self) -> None:
        self.num_rates = 0

    def get_lr(self) -> list[float]:
        """The rate of the next update, as if each update moved it."""
        self.num_rates += 1
        return [0.1 * self.num_rates, 9.0]

    def get_global_grad_norm(self) -> float | None:
        return self.norm


class Budget:
    num_decoded, num_bad, num_listed = 40, 3, 2

    def __init__(self, events: list) -> None:
        self.events = events

    def update(self, **given) -> None:
        self.events.append(("budget", given))


class Monitor:
    def __init__(self, events: list) -> None:
        self.events = events

    def advance(self, **shown: str) -> None:
        self.events.append(("advance", shown))

    def record(self, step: int, kind: str, scalars: dict) -> None:
        self.events.append((f"record {kind}", step, scalars))

    def say(self, line: str) -> None:
        self.events.append(("say", line))


class Moves:
    """Stands for a batch; says where it was moved."""

    def to(self, device):
        return ("moved", device)


class Run:
    """A job of stubs, the events of its training in order, and a request to stop before step `stop_at`."""

    def __init__(self, monkeypatch, tmp_path, *, total=6, step=0, last_tag=None, stop_at=None, **train) -> None:
        self.events: list = []
        self.model = build(tiny_spec(tmp_path, "objectives.contrastive.temperature=0.25"))
        self.steps_done = step
        self.asked: list = []
        self.stop = SimpleNamespace(requested=0)
        self.stop_at = stop_at
        config = SimpleNamespace(
            seed=11,
            model=self.model.spec,
            train=TrainConfig(total_steps=total, global_batch_size=8, **train),
        )
        tokenizer = SimpleNamespace(save=lambda folder: self.events.append(("tokenizer", folder)))
        training = SimpleNamespace(steps=self.steps)
        self.job = loop.Job(
            config=config,
            directory=tmp_path,
            sources=SimpleNamespace(training=training, validation="validation loader", tokenizer=tokenizer),
            model=self.model,
            engine=Engine(),
            precision=SimpleNamespace(name="fp16"),
            total_steps=total,
            step=step,
            facts={"world_size": 1, "seed": 11},
            budget=Budget(self.events),
            last_tag=last_tag,
        )
        self.monitor = Monitor(self.events)
        self.report: dict | None = {"loss/mlm": 1.0}
        monkeypatch.setattr(loop, "TrainStep", self.make_step)
        monkeypatch.setattr(loop, "validate", self.validate)
        monkeypatch.setattr(loop.checkpoint, "save", self.save)
        monkeypatch.setattr(loop.engine, "temperature", lambda model: 0.25)

    def steps(self, *given, **options):
        self.asked.append((given, options))
        while True:
            self.steps_done += 1
            if self.steps_done == self.stop_at:
                self.stop.requested = signal.SIGUSR1
            yield SimpleNamespace(
                number=self.steps_done, micro_batches=[Moves(), Moves()], bad_media=["bad"], wait_seconds=0.0
            )

    def make_step(self, engine, model, **options):
        assert (engine, model) == (self.job.engine, self.model)
        assert options == {"seed": 11, "precision": "fp16", "directory": self.job.directory}
        run = self

        class Step:
            num_skipped = 4

            def announce(self, taken, stop):
                run.events.append(("announce", taken.number, stop))
                tokens = {f"tokens/{name}": 4.0 for name in run.model.names}
                return {"stop": float(stop != 0), "decoded": 7.0, "bad": 1.0, **tokens}

            def __call__(self, batches, announced):
                run.events.append(("step", batches))
                return {"total": 1.23456, "mlm": 0.5}

        return Step()

    def validate(self, *given, **options):
        self.events.append(("validate", self.job.step))
        assert given == (self.job.engine, self.model, "validation loader", self.stop, self.job.budget)
        assert options == {"seed": 11, "device": CPU}
        return self.report

    def save(self, engine, root, state, *, keep, write_extras):
        assert engine is self.job.engine
        self.events.append(("save", root, state, keep))
        write_extras(Path(root) / "tag")
        return f"step-{state['step']:08d}"

    def train(self) -> int:
        return loop.train(self.job, self.monitor, self.stop)

    def at(self, kind: str) -> list[int]:
        """Steps at which there were events of this kind."""
        return [event[2]["step"] if kind == "save" else event[1] for event in self.events if event[0] == kind]


@pytest.fixture
def started(monkeypatch, tmp_path):
    return lambda **options: Run(monkeypatch, tmp_path, **options)


def test_a_run_records_validates_and_saves_when_it_is_told(started) -> None:
    run = started(total=9, log_every=4, validate_every=3, save_every=2, keep_last=5)
    assert run.train() == 0 and run.job.step == 9
    assert run.at("record train") == [1, 4, 8, 9]
    assert run.at("validate") == run.at("record validation") == [0, 3, 6, 9]
    assert run.at("save") == [2, 4, 6, 8, 9]
    assert {event[3] for event in run.events if event[0] == "save"} == {5}


def test_a_run_without_periods_validates_before_and_after_and_saves_once(started) -> None:
    run = started(total=5, log_every=10, validate_every=0, save_every=0)
    run.train()
    assert (run.at("validate"), run.at("save"), run.at("record train")) == ([0, 5], [5], [1, 5])


def test_a_step_counts_files_first_and_trains_on_batches_moved_to_the_device(started) -> None:
    run = started(total=1)
    run.train()
    kinds = [event[0] for event in run.events]
    assert kinds[:7] == [
        *("validate", "record validation", "announce", "budget", "step", "advance", "record train"),
    ]
    assert kinds[7:9] == ["validate", "record validation"], "the checkpoint comes after its validation"
    assert ("budget", {"num_decoded": 7, "num_bad": 1, "local": ["bad"]}) in run.events
    assert ("step", [("moved", CPU)] * 2) in run.events
    shown = dict(event for event in run.events if event[0] == "advance")["advance"]
    assert shown["loss"] == "1.235" and shown["products_s"].isdigit()


def test_a_resumed_run_takes_the_order_up_where_it_was_and_does_not_validate_first(started) -> None:
    run = started(total=6, step=4, last_tag="step-00000004", validate_every=0)
    run.train()
    assert run.asked == [((32,), {"num_steps": 2})]
    assert (run.at("validate"), run.at("save")) == ([6], [6])
    untrained = started(total=2, step=0, last_tag="step-00000000", validate_every=0)
    untrained.train()
    assert untrained.at("validate") == [2]


def test_a_run_that_is_done_does_nothing(started) -> None:
    run = started(total=6, step=6, last_tag="step-00000006")
    assert run.train() == 0 and run.events == []


def test_a_request_to_stop_saves_before_the_step_and_returns_the_signal(started) -> None:
    run = started(total=6, stop_at=3)
    assert run.train() == signal.SIGUSR1
    assert run.job.step == 2 and run.at("save") == [2]
    assert [event[2] for event in run.events if event[0] == "announce"] == [0, 0, signal.SIGUSR1]
    assert len([event for event in run.events if event[0] == "step"]) == 2


def test_the_greatest_signal_of_all_ranks_is_returned(started, monkeypatch) -> None:
    run = started(total=6, stop_at=1)
    monkeypatch.setattr(loop.distributed, "gather_objects", lambda own: [0, own, 1])
    assert run.train() == signal.SIGUSR1


def test_a_stop_where_the_run_resumed_does_not_save_again(started) -> None:
    run = started(total=6, step=4, last_tag="step-00000004", stop_at=5)
    assert run.train() == signal.SIGUSR1
    assert run.at("save") == [] and run.job.last_tag == "step-00000004"
    just_saved = started(total=6, save_every=2, stop_at=3)
    just_saved.train()
    assert just_saved.at("save") == [2]


def test_a_validation_that_was_cut_short_or_has_no_split_records_nothing(started) -> None:
    run = started(total=1)
    run.report = None
    run.train()
    assert run.at("validate") == [0, 1] and run.at("record validation") == []
    run = started(total=1)
    run.job.sources.validation = None
    run.train()
    assert run.at("validate") == []


def test_a_checkpoint_holds_facts_position_counts_and_what_the_run_owns(started, tmp_path) -> None:
    run = started(total=3)
    run.train()
    (saved,) = (event for event in run.events if event[0] == "save")
    counts = {"num_decoded": 40, "num_bad": 3}
    assert saved[1] == tmp_path / "checkpoints"
    assert saved[2] == {"world_size": 1, "seed": 11, "step": 3, "position": 24, **counts}
    assert ("tokenizer", tmp_path / "checkpoints/tag/tokenizer") in run.events
    assert (tmp_path / "checkpoints/tag/model/config.json").is_file()
    assert run.events[-1] == ("say", f"saved {tmp_path / 'checkpoints/step-00000003'}")


def metered(started, monkeypatch, times, *, wait=0.5, tokens=None, **changes):
    """The scalars of one step that began and ended at `times`, and the job."""
    run = started(total=3)
    for name, value in changes.items():
        setattr(run.job.engine, name, value)
    monkeypatch.setattr(loop.time, "perf_counter", iter(times).__next__)
    meter = loop.Meter(run.job)
    meter.start()
    names = run.model.names
    announced = {f"tokens/{name}": float(count) for name, count in zip(names, tokens or range(5), strict=True)}
    taken = SimpleNamespace(wait_seconds=wait, micro_batches=[])
    return meter.stop(taken, announced, {"total": 3.0, "mlm": 2.0}, 6), run, meter


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
    monkeypatch.setattr(loop.time, "perf_counter", iter([0.0, 4.0]).__next__)
    run = started(total=3)
    meter = loop.Meter(run.job)
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
    monkeypatch.setattr(loop.torch.cuda, "synchronize", lambda device: events.append(device))
    monkeypatch.setattr(flops, "device_peak", lambda device: None)
    gpu = torch.device("cuda", 1)
    metered(started, monkeypatch, [0.0, 1.0])
    assert events == []
    run = started(total=3)
    run.job.engine.device = gpu
    monkeypatch.setattr(loop.time, "perf_counter", lambda: events.append("clock") or float(len(events)))
    meter = loop.Meter(run.job)
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
    monkeypatch.setattr(loop.engine, "temperature", lambda model: None)
    assert loop.Meter(run.job).slow() == {}
