"""Finetuning of a classifier under DeepSpeed, with pretraining's step, checkpoints, resume and requests to stop."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m5ds.batch import Batch
from m5ds.config import RunConfig
from m5ds.downstream import settings as downstream_settings
from m5ds.downstream.embed.pretrained import BEST, Pretrained
from m5ds.downstream.measure.categories import LEAF, CategoryLevel
from m5ds.downstream.settings import DownstreamConfig
from m5ds.downstream.tasks.classifier import TASK, ProductClassifier
from m5ds.downstream.tasks.jobs import Evaluation, folder_of
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.inputs.media import BadMedia
from m5ds.model.masking import PRODUCTS
from m5ds.train import distributed, ds_config, sources, start
from m5ds.train.checkpoints import checkpoint, run_directory, tags
from m5ds.train.faults import BadMediaBudget
from m5ds.train.precision import Precision
from m5ds.train.report.monitor import Monitor
from m5ds.train.step import TrainStep, take
from m5ds.train.stopping import StopRequest

CHECKPOINTS = "checkpoints"


class FinetuneStep(TrainStep):
    """One optimizer step: pretraining's, with labelled products as the targets."""

    def targets(self, batch: Batch) -> dict[str, int]:
        return {PRODUCTS: batch.num_products, TASK: int((batch.label_B >= 0).sum())}


@dataclass(kw_only=True)
class FinetuneJob:
    """A finetuning run, ready to train."""

    settings: DownstreamConfig
    config: RunConfig
    directory: Path
    sources: sources.Sources
    level: CategoryLevel
    classes: ClassChoice
    model: ProductClassifier
    engine: Any
    precision: Precision
    total_steps: int
    facts: dict[str, Any]
    budget: BadMediaBudget
    step: int = 0
    best: float = -1.0
    """Best validation accuracy so far."""
    worse: int = 0
    """Validations since the best one."""
    validated: int = 0
    """Step after which the last whole validation ran."""
    last_tag: str | None = None

    def relabel(self, batch: Batch) -> Batch:
        """Labels at the configured level; products of left-out categories lose theirs."""
        batch.label_B = torch.from_numpy(self.classes.apply(self.level.apply(batch.label_B.numpy())))
        return batch


def build_classifier(settings: DownstreamConfig, pretrained: Pretrained, classes: ClassChoice) -> ProductClassifier:
    """The classifier at its start: the pretrained encoder and a head that depends on `settings.seed` alone.

    Every rank holds it whole until DeepSpeed partitions it, so the start is the same on any number of ranks.
    """
    config = settings.classification
    model = ProductClassifier(pretrained.model, config, len(classes.count_C), seed=settings.seed)
    model.set_loss(config, classes.count_C)
    return model.eval()


def prepare(
    evaluation: Evaluation, pretrained: Pretrained, model: ProductClassifier, ds: ds_config.DeepSpeedJson, resume: str
) -> FinetuneJob:
    """The job at the step that it goes on from. Collective. `ValueError` for a checkpoint of another run."""
    settings, shards, classes = evaluation.settings, evaluation.shards, evaluation.classes
    config = RunConfig(
        name=TASK,
        output_dir=str(folder_of(settings)),
        seed=settings.seed,
        plugins=pretrained.model.config.plugins or [],
        data=settings.data,
        model=pretrained.model.spec,
        train=settings.train,
    )
    directory, found = start.find_run(config, resume)
    finetuning = {
        "task": TASK,
        "pretrained": pretrained.source,
        "pretrained_fingerprint": pretrained.fingerprint,
        "num_classes": len(classes.count_C),
        "lora_rank": settings.classification.lora_rank,
        "lora_alpha": settings.classification.lora_alpha,
        "settings": downstream_settings.to_dict(settings),
    }
    if found is not None:
        _check_same_finetuning(found, finetuning)
    opened = sources.open_sources(config, shards, pretrained.tokenizer, evaluation.labelled)
    planned = start.plan(config, ds, opened, found, finetune=finetuning)
    with distributed.stop_together():
        if distributed.rank() == 0:
            run_directory.write_description(directory, config, planned.resolved, planned.facts)
    deepspeed_engine = start.start_engine(model, config, planned, found)
    counts = (found.state["num_decoded"], found.state["num_bad"]) if found else (0, 0)
    return FinetuneJob(
        settings=settings,
        config=config,
        directory=directory,
        sources=opened,
        level=evaluation.level,
        classes=classes,
        model=model,
        engine=deepspeed_engine,
        precision=planned.precision,
        total_steps=planned.total_steps,
        facts=planned.facts,
        budget=BadMediaBudget(directory / "bad_media.jsonl", config.data.max_bad_fraction, counts),
        step=found.state["step"] if found else 0,
        best=found.state["best"] if found else -1.0,
        worse=found.state["worse"] if found else 0,
        # Checkpoints before this key were only written behind a whole validation.
        validated=found.state.get("validated", found.state["step"]) if found else 0,
        last_tag=found.tag if found else None,
    )


def _check_same_finetuning(found: checkpoint.Found, now: dict[str, Any]) -> None:
    saved = found.state.get("finetune")
    where = f"{found.root / found.tag}"
    if saved is None:
        raise ValueError(f"{where}: a pretraining checkpoint; pass it as --checkpoint and start with --resume none")
    if saved["pretrained_fingerprint"] != now["pretrained_fingerprint"]:
        raise ValueError(
            f"{where}: was finetuned from other weights ({saved['pretrained']}); pass those as --checkpoint"
        )
    if saved["settings"]["classification"] != now["settings"]["classification"]:
        raise ValueError(f"{where}: the classification section differs from this run's; resume with the same settings")
    levels = [settings.get("category_level", LEAF) for settings in (saved["settings"], now["settings"])]
    if levels[0] != levels[1]:
        raise ValueError(
            f"{where}: was finetuned at category_level {levels[0]}, not {levels[1]}; resume with the same settings"
        )


def finetune(job: FinetuneJob, monitor: Monitor, stop: StopRequest) -> int:
    """Train to the last step, to early stopping, or until asked to stop. Collective. Returns the signal, or 0.

    With `classification.patience` the best checkpoint by validation accuracy is kept under `best/`.
    """
    train, patience = job.config.train, job.settings.classification.patience
    step = FinetuneStep(
        job.engine, job.model, seed=job.config.seed, precision=job.precision.name, directory=job.directory
    )
    job.engine.train()
    batches = job.sources.training.steps(job.step * train.global_batch_size, num_steps=job.total_steps - job.step)
    # A run that was stopped within a validation makes it up first: early stopping and the best checkpoint hang on it.
    if _validation_is_due(job) and not _validate(job, monitor, stop):
        return _stopped(job, stop)
    while job.step < job.total_steps and not (patience and job.worse >= patience):
        taken = take(batches)
        if not isinstance(taken, Exception):
            taken.micro_batches = [job.relabel(batch) for batch in taken.micro_batches]
        announced = step.announce(taken, stop.requested)
        if announced["stop"]:
            return _stopped(job, stop)
        assert not isinstance(taken, Exception)  # announce has raised
        job.budget.update(num_decoded=int(announced["decoded"]), num_bad=int(announced["bad"]), local=taken.bad_media)
        losses = step([batch.to(job.engine.device) for batch in taken.micro_batches], announced)
        job.step += 1
        is_last = job.step == job.total_steps
        monitor.advance(loss=f"{losses['total']:.3f}")
        if job.step % train.log_every == 0 or is_last:
            rate = {"optimizer/learning_rate": float(job.engine.get_lr()[0])}
            monitor.record(job.step, "train", {f"loss/{name}": value for name, value in losses.items()} | rate)
        if _validation_is_due(job) and not _validate(job, monitor, stop):
            return _stopped(job, stop)
        if train.save_every and job.step % train.save_every == 0 and not is_last:
            _save(job, job.directory / CHECKPOINTS, train.keep_last)
    _save(job, job.directory / CHECKPOINTS, train.keep_last)
    return 0


def _stopped(job: FinetuneJob, stop: StopRequest) -> int:
    """Save; the signal that some rank was asked to stop by."""
    _save(job, job.directory / CHECKPOINTS, job.config.train.keep_last)
    return max(distributed.gather_objects(stop.requested))


def _validation_is_due(job: FinetuneJob) -> bool:
    train = job.config.train
    if not job.settings.classification.patience or job.step == job.validated:
        return False
    return job.step == job.total_steps or job.step % train.validate_every == 0


def _validate(job: FinetuneJob, monitor: Monitor, stop: StopRequest) -> bool:
    """Accuracy and loss on the validation split; a new best is saved. Collective. False where a rank asked to stop.

    Undecodable files are listed in the job's budget, not counted, as in pretraining's validation.
    """
    loader = job.sources.validation
    if loader is None:
        raise ValueError("classification.patience needs shards with a validation split; set it to 0 or build them anew")
    sums = dict.fromkeys(("loss", "correct", "labelled"), 0.0)
    bad_media: list[BadMedia] = []
    job.engine.eval()
    steps = loader.evaluation_steps()
    with torch.no_grad():
        for _ in range(loader.num_evaluation_steps):
            with distributed.stop_together():
                taken = next(steps)
            if distributed.sum_over_ranks({"stop": float(bool(stop.requested))})["stop"]:
                job.engine.train()
                loader.close()
                job.budget.note(bad_media)
                return False
            bad_media += taken.bad_media
            for batch in taken.micro_batches:
                batch = job.relabel(batch)
                # With a count of 1 the loss is the local sum.
                output = job.engine(batch.to(job.engine.device), counts={TASK: 1}, seed=job.config.seed)
                predicted_B = output.logits_BC.argmax(1).cpu()
                sums["loss"] += float(output.losses[TASK])
                sums["correct"] += int(((predicted_B == batch.label_B) & (batch.label_B >= 0)).sum())
                sums["labelled"] += int((batch.label_B >= 0).sum())
    job.engine.train()
    job.budget.note(bad_media)
    total = distributed.sum_over_ranks(sums)
    if not total["labelled"]:
        raise ValueError("classification.patience: no validation product has a label of a kept class; set it to 0")
    accuracy = total["correct"] / total["labelled"]
    monitor.record(job.step, "validation", {"accuracy": accuracy, "loss": total["loss"] / total["labelled"]})
    job.validated = job.step
    if accuracy > job.best:
        job.best, job.worse = accuracy, 0
        _save(job, job.directory / BEST / CHECKPOINTS, keep=1)
    else:
        job.worse += 1
    return True


def _save(job: FinetuneJob, root: Path, keep: int) -> None:
    state = {
        **job.facts,
        "step": job.step,
        "position": job.step * job.config.train.global_batch_size,
        "num_decoded": job.budget.num_decoded,
        "num_bad": job.budget.num_bad,
        "best": job.best,
        "worse": job.worse,
        "validated": job.validated,
    }
    if root.parent == job.directory:
        if job.last_tag == tags.tag_name(job.step):
            return
        job.last_tag = tags.tag_name(job.step)
    if distributed.rank() == 0:
        root.mkdir(parents=True, exist_ok=True)

    def write_extras(folder: Path) -> None:
        job.sources.tokenizer.save(folder / "tokenizer")
        job.model.encoder.config.save_pretrained(folder / "model")

    checkpoint.save(job.engine, root, state, keep=keep, write_extras=write_extras)


def describe(job: FinetuneJob) -> str:
    """A few lines before the first step."""
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in job.model.parameters() if p.requires_grad)
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in job.model.parameters())
    dropped = f", {len(job.classes.dropped)} rare ones left out" if job.classes.dropped else ""
    return (
        f"classification -> {job.directory}\n"
        f"  {int((job.classes.count_C > 0).sum())} categories{dropped}; {int(job.classes.count_C.sum())} labelled"
        f" products\n  tuning {job.model.tuning}: {trained / 1e6:.2f} of {whole / 1e6:.2f} M parameters;"
        f" steps {job.step} to {job.total_steps}\n  {job.precision}, on {job.engine.device}"
    )


def learning_curve(directory: Path) -> list[dict[str, Any]]:
    """The run's records, for the report."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
