"""The training loop, of pretraining and finetuning alike: batches, step, monitor, validation, checkpoints, requests to
stop.
"""

from m5ds.train import distributed
from m5ds.train.job import Job
from m5ds.train.report.meter import Meter
from m5ds.train.report.monitor import Monitor
from m5ds.train.step import TrainStep, next_step
from m5ds.train.stopping import StopRequest


def train(job: Job, monitor: Monitor, stop: StopRequest) -> int:
    """Train to the last step, until validation has seen enough, or until a stop is requested. Collective.

    Returns the signal to stop for, or 0. Raises RankError for a user's error on any rank and Diverged for a loss that
    is not finite, both on every rank.
    """
    config, device = job.config.train, job.engine.device
    step = TrainStep(
        job.engine,
        job.model,
        seed=job.config.seed,
        precision=job.precision.name,
        directory=job.directory,
        objectives=job.objectives,
    )
    meter = Meter(job)
    job.engine.train()
    # A run that was stopped within a validation makes it up first: what follows may hang on it.
    if not _validate_if_due(job, monitor, stop):
        return _stopped(job, monitor, stop)
    steps = job.sources.training.steps(job.step * config.global_batch_size, num_steps=job.total_steps - job.step)
    while job.step < job.total_steps and not job.validation.finished:
        meter.start()
        prepared = next_step(steps)
        if not isinstance(prepared, Exception):
            prepared.micro_batches = [job.prepare(batch) for batch in prepared.micro_batches]
        counts = step.count(prepared, stop.requested)
        if counts["stop"]:
            return _stopped(job, monitor, stop)
        assert not isinstance(prepared, Exception)  # count has raised
        job.budget.update(num_decoded=int(counts["decoded"]), num_bad=int(counts["bad"]), local=prepared.bad_media)
        losses = step([batch.to(device) for batch in prepared.micro_batches], counts)
        job.step += 1
        scalars = meter.stop(prepared, counts, losses, step.num_skipped)
        monitor.advance(loss=f"{losses['total']:.3f}", products_s=f"{scalars['throughput/products_per_second']:.0f}")
        if job.step % config.log_every == 0 or job.step in (1, job.total_steps):
            monitor.record(job.step, "train", {**scalars, **meter.parameters()})
        if not _validate_if_due(job, monitor, stop):
            return _stopped(job, monitor, stop)
        if config.save_every and job.step % config.save_every == 0:
            job.save(monitor)
    job.save(monitor)
    return 0


def _validate_if_due(job: Job, monitor: Monitor, stop: StopRequest) -> bool:
    """False where a rank asked to stop meanwhile."""
    every, is_last = job.config.train.validate_every, job.step == job.total_steps
    is_first = job.step == 0 and job.validation.from_start
    if job.step == job.validated or not (is_first or is_last or (every and job.step and job.step % every == 0)):
        return True
    report = job.validation.measure(job, stop)
    if report is None:
        return False
    job.validated = job.step
    if report:
        monitor.record(job.step, "validation", report)
        job.validation.note(job, report)
    return True


def _stopped(job: Job, monitor: Monitor, stop: StopRequest) -> int:
    """Save; the signal that some rank was asked to stop by."""
    job.save(monitor)
    return max(distributed.gather_objects(stop.requested))
