"""The training loop: batches, step, damaged files, monitor, validation, checkpoints, requests to stop."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from m5ds.config import RunConfig
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.train import distributed, engine
from m5ds.train.checkpoints import checkpoint, tags
from m5ds.train.faults import BadMediaBudget
from m5ds.train.precision import Precision
from m5ds.train.report import flops
from m5ds.train.report.monitor import Monitor
from m5ds.train.sources import Sources
from m5ds.train.step import TrainStep, take
from m5ds.train.stopping import StopRequest
from m5ds.train.validation import validate


@dataclass(kw_only=True)
class Job:
    """A run, ready to train: what m5ds/pretrain.py built."""

    config: RunConfig
    directory: Path
    sources: Sources
    model: M5ForPretraining
    engine: Any
    precision: Precision
    total_steps: int
    step: int
    """Updates done."""
    facts: dict[str, Any]
    """What a checkpoint's state says besides the step: configuration, data, code, ranks (checkpoint.check_same_run)."""
    budget: BadMediaBudget
    last_tag: str | None = None
    totals: dict[str, float] = field(default_factory=lambda: {"products": 0.0, "seconds": 0.0})

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"


def train(job: Job, monitor: Monitor, stop: StopRequest) -> int:
    """Train to the last step, or until a stop is requested. Collective. Returns the signal to stop for, or 0.

    Raises RankError for a user's error on any rank and Diverged for a loss that is not finite, both on every rank.
    """
    train_config = job.config.train
    step = TrainStep(job.engine, job.model, seed=job.config.seed, precision=job.precision.name, directory=job.directory)
    meter = Meter(job)
    if job.step == 0 and job.last_tag is None:
        _validate(job, monitor, stop)
    batches = job.sources.training.steps(
        job.step * train_config.global_batch_size, num_steps=job.total_steps - job.step
    )
    while job.step < job.total_steps:
        meter.start()
        taken = take(batches)
        announced = step.announce(taken, stop.requested)
        if announced["stop"]:
            _save(job, monitor)
            return max(distributed.gather_objects(stop.requested))
        assert not isinstance(taken, Exception)  # announce has raised
        job.budget.update(num_decoded=int(announced["decoded"]), num_bad=int(announced["bad"]), local=taken.bad_media)
        losses = step([batch.to(job.engine.device) for batch in taken.micro_batches], announced)
        job.step += 1
        scalars = meter.stop(taken, announced, losses, step.num_skipped)
        monitor.advance(loss=f"{losses['total']:.3f}", products_s=f"{scalars['throughput/products_per_second']:.0f}")
        if job.step % train_config.log_every == 0 or job.step in (1, job.total_steps):
            monitor.record(job.step, "train", {**scalars, **meter.slow()})
        is_last = job.step == job.total_steps
        if is_last or (train_config.validate_every and job.step % train_config.validate_every == 0):
            _validate(job, monitor, stop)
        if is_last or (train_config.save_every and job.step % train_config.save_every == 0):
            _save(job, monitor)
    return 0


def _validate(job: Job, monitor: Monitor, stop: StopRequest) -> None:
    if job.sources.validation is None:
        return
    loader, seed, device = job.sources.validation, job.config.seed, job.engine.device
    report = validate(job.engine, job.model, loader, stop, job.budget, seed=seed, device=device)
    if report is not None:
        monitor.record(job.step, "validation", report)


def _save(job: Job, monitor: Monitor) -> None:
    """A checkpoint of this step, unless it is the one that the run resumed from or has just written."""
    if job.last_tag == tags.tag_name(job.step):
        return
    state = {
        **job.facts,
        "step": job.step,
        "position": job.step * job.config.train.global_batch_size,
        "num_decoded": job.budget.num_decoded,
        "num_bad": job.budget.num_bad,
    }

    def write_extras(folder: Path) -> None:
        job.sources.tokenizer.save(folder / "tokenizer")
        job.model.config.save_pretrained(folder / "model")

    job.last_tag = checkpoint.save(
        job.engine, job.checkpoints, state, keep=job.config.train.keep_last, write_extras=write_extras
    )
    monitor.say(f"saved {job.checkpoints / job.last_tag}")


class Meter:
    """Scalars of a step: losses, shares, rates. Rates are those of this step."""

    _started: float
    _rate: float

    def __init__(self, job: Job) -> None:
        self._job = job
        self._flops = flops.FlopCounter(job.config.model)
        self._peak = flops.device_peak(job.engine.device)

    def start(self) -> None:
        self._started, self._rate = time.perf_counter(), float(self._job.engine.get_lr()[0])

    def stop(self, taken: Any, announced: dict[str, float], losses: dict[str, float], skipped: int) -> dict[str, float]:
        job, names = self._job, self._job.model.names
        if job.engine.device.type == "cuda":
            torch.cuda.synchronize(job.engine.device)
        seconds = time.perf_counter() - self._started
        products = float(job.config.train.global_batch_size)
        job.totals["products"] += products
        job.totals["seconds"] += seconds
        tokens = sum(announced[f"tokens/{name}"] for name in names)
        norm = job.engine.get_global_grad_norm()
        scalars = {
            **{f"loss/{name}": value for name, value in losses.items()},
            **{f"tokens/share/{name}": announced[f"tokens/{name}"] / max(tokens, 1.0) for name in names},
            "optimizer/gradient_norm": float(norm) if norm is not None else 0.0,
            "optimizer/learning_rate": self._rate,
            "optimizer/skipped_steps": float(skipped),
            "throughput/tokens_per_second": tokens / seconds,
            "throughput/products_per_second": products / seconds,
            "data/wait_share": min(1.0, taken.wait_seconds / seconds),
            "data/bad_media": float(job.budget.num_listed),
        }
        if self._peak is not None:
            done = sum(self._flops.count(batch) for batch in taken.micro_batches)
            scalars["throughput/flops_utilisation"] = done / seconds / self._peak
        return scalars

    def slow(self) -> dict[str, float]:
        """What costs a collective: only in logged steps."""
        value = engine.temperature(self._job.model)
        return {} if value is None else {"contrastive/temperature": value}
