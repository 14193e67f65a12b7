"""A run, ready to train: what pretraining and finetuning hand to the one loop (DESIGN 3.10)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m5ds.batch import Batch
from m5ds.config import RunConfig
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.train import distributed, start
from m5ds.train.checkpoints import checkpoint, run_directory, tags
from m5ds.train.engine.precision import Precision
from m5ds.train.faults import BadMediaBudget
from m5ds.train.report.monitor import Monitor
from m5ds.train.sources import Sources
from m5ds.train.stopping import StopRequest


class Validation:
    """What a job measures on held-out products. This one measures nothing."""

    from_start = False
    """True: also before the first step."""
    finished = False
    """True: there is no use in training on."""

    def measure(self, job: "Job", stop: StopRequest) -> dict[str, float] | None:
        """Scalars by name, none where nothing is measured. Collective. None where a rank asked to stop meanwhile."""
        return {}

    def note(self, job: "Job", report: dict[str, float]) -> None:
        """Called with what was measured, once it is recorded. Collective."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what `state` kept; `state` is empty in a new run."""


@dataclass(kw_only=True)
class Job:
    """Everything that a run consists of, and how far it is."""

    config: RunConfig
    directory: Path
    sources: Sources
    model: M5ForPretraining
    objectives: Sequence[str] | None = None
    """Those of the model's that are minimised; None: all."""
    engine: Any
    precision: Precision
    validation: Validation
    """What is measured on held-out products, and whether that is enough to stop."""
    total_steps: int
    identity: dict[str, Any]
    """What a checkpoint says of its run: configuration, data, code, ranks (checkpoint.check_same_run)."""
    budget: BadMediaBudget
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    """What becomes of a batch before it is counted: the labels of a task, the modalities that it shows."""
    step: int = 0
    """Updates done."""
    validated: int = -1
    """The step after which the last whole validation ran."""
    last_tag: str | None = None
    totals: dict[str, float] = field(default_factory=lambda: {"products": 0.0, "seconds": 0.0})

    @classmethod
    def at(cls, saved: checkpoint.SavedCheckpoint | None, planned: start.Plan, **parts: Any) -> "Job":
        """The job at the step of a checkpoint, or at its start."""
        state = saved.state if saved else {}
        config, directory = parts["config"], parts["directory"]
        counts = (state.get("num_decoded", 0), state.get("num_bad", 0))
        job = cls(
            precision=planned.precision,
            total_steps=planned.total_steps,
            identity=planned.identity,
            budget=BadMediaBudget(directory / run_directory.BAD_MEDIA, config.data.max_bad_fraction, counts),
            step=state.get("step", 0),
            validated=state.get("validated", state.get("step", -1)),
            last_tag=saved.tag if saved else None,
            **parts,
        )
        job.validation.resume(state)
        return job

    @property
    def checkpoints(self) -> Path:
        return self.directory / run_directory.CHECKPOINTS

    def save(self, monitor: Monitor) -> None:
        """A checkpoint of this step, unless it is the one that the run resumed from or has just written. Collective."""
        if self.last_tag != tags.tag_name(self.step):
            self.last_tag = self.save_to(self.checkpoints, self.config.train.keep_last)
            monitor.say(f"saved {self.checkpoints / self.last_tag}")

    def save_to(self, root: Path, keep: int) -> str:
        """A checkpoint of this step under `root`, of which the newest `keep` stay. Collective. Returns its tag."""
        state = {
            **self.identity,
            "step": self.step,
            "position": self.step * self.config.train.global_batch_size,
            "num_decoded": self.budget.num_decoded,
            "num_bad": self.budget.num_bad,
            "validated": self.validated,
            **self.validation.state(),
        }
        if distributed.rank() == 0:
            root.mkdir(parents=True, exist_ok=True)

        def write_extras(folder: Path) -> None:
            self.sources.tokenizer.save(folder / run_directory.TOKENIZER)
            self.model.config.save_pretrained(folder / "model")

        return checkpoint.save(self.engine, root, state, keep=keep, write_extras=write_extras)
