"""A job of stubs whose events are written down in order, for the tests of the loop and the meter."""

import signal
from pathlib import Path
from types import SimpleNamespace

import torch
from model_cases import build, tiny_spec

from m5ds.config import TrainConfig
from m5ds.train import loop
from m5ds.train.checkpoints import checkpoint
from m5ds.train.engine import build as engine
from m5ds.train.job import Job, Validation

CPU = torch.device("cpu")


class Engine:
    device = CPU
    norm: float | None = 2.5

    def __init__(self) -> None:
        self.num_rates = 0

    def train(self) -> None:
        pass

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


class Measured(Validation):
    """Reports what its run is told to."""

    def __init__(self, run: "Run", from_start: bool) -> None:
        self.run, self.from_start = run, from_start

    @property
    def finished(self) -> bool:
        return self.run.job.step == self.run.finished_at

    def measure(self, job, stop):
        assert job is self.run.job and stop is self.run.stop
        self.run.events.append(("validate", job.step))
        self.run.when_validated()
        return self.run.report

    def note(self, job, report) -> None:
        assert report is self.run.report
        self.run.events.append(("note", job.step))

    def state(self) -> dict:
        return {"own": "state"}


class Moves:
    """Stands for a batch; says where it was moved."""

    def to(self, device):
        return ("moved", device)


class Run:
    """A job of stubs, the events of its training in order, and a request to stop before step `stop_at`."""

    def __init__(
        self,
        monkeypatch,
        tmp_path,
        *,
        total=6,
        step=0,
        validated=-1,
        last_tag=None,
        stop_at=None,
        from_start=True,
        **train,
    ) -> None:
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
        self.job = Job(
            config=config,
            directory=tmp_path,
            sources=SimpleNamespace(training=training, validation="validation loader", tokenizer=tokenizer),
            model=self.model,
            engine=Engine(),
            precision=SimpleNamespace(name="fp16"),
            total_steps=total,
            step=step,
            identity={"world_size": 1, "seed": 11},
            validation=Measured(self, from_start),
            validated=validated,
            budget=Budget(self.events),
            last_tag=last_tag,
        )
        self.monitor = Monitor(self.events)
        self.report: dict | None = {"loss/mlm": 1.0}
        self.finished_at: int | None = None
        self.when_validated = lambda: None
        monkeypatch.setattr(loop, "TrainStep", self.make_step)
        monkeypatch.setattr(checkpoint, "save", self.save)
        monkeypatch.setattr(engine, "logged_parameters", lambda model: {"contrastive/temperature": 0.25})

    def steps(self, *given, **options):
        self.asked.append((given, options))
        while True:
            self.steps_done += 1
            if self.steps_done == self.stop_at:
                self.stop.requested = signal.SIGUSR1
            yield SimpleNamespace(
                number=self.steps_done, micro_batches=[Moves(), Moves()], bad_media=["bad"], wait_seconds=0.0
            )

    def make_step(self, used, model, **options):
        assert (used, model) == (self.job.engine, self.model)
        assert options == {"seed": 11, "precision": "fp16", "directory": self.job.directory, "objectives": None}
        run = self

        class Step:
            num_skipped = 4

            def count(self, prepared, stop):
                run.events.append(("count", prepared.number, stop))
                tokens = {f"tokens/{name}": 4.0 for name in run.model.names}
                return {"stop": float(stop != 0), "decoded": 7.0, "bad": 1.0, **tokens}

            def __call__(self, batches, counts):
                run.events.append(("step", batches))
                return {"total": 1.23456, "mlm": 0.5}

        return Step()

    def save(self, used, root, state, *, keep, write_extras):
        assert used is self.job.engine
        self.events.append(("save", root, state, keep))
        write_extras(Path(root) / "tag")
        return f"step-{state['step']:08d}"

    def train(self) -> int:
        return loop.train(self.job, self.monitor, self.stop)

    def at(self, kind: str) -> list[int]:
        """Steps at which there were events of this kind."""
        return [event[2]["step"] if kind == "save" else event[1] for event in self.events if event[0] == kind]

    def saved_state(self) -> dict:
        """Of the last checkpoint."""
        return [event[2] for event in self.events if event[0] == "save"][-1]
