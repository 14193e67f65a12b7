"""Finetuning of a classifier: what it adds to a job, which the one training loop runs (m5ds/train/loop.py)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m5ds.batch import Batch
from m5ds.config import RunConfig
from m5ds.downstream import settings as downstream_settings
from m5ds.downstream.embed.presence import with_modalities
from m5ds.downstream.embed.pretrained import BEST, Pretrained
from m5ds.downstream.measure.categories import LEAF, CategoryLevel
from m5ds.downstream.settings import DownstreamConfig
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.jobs import folder_of
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.model.objectives.classification import TASK
from m5ds.train import distributed, sources, start
from m5ds.train.checkpoints import checkpoint, run_directory
from m5ds.train.engine import ds_config
from m5ds.train.job import Job, Validation
from m5ds.train.report.monitor import METRICS
from m5ds.train.stopping import StopRequest
from m5ds.train.validation import Interrupted, Sums, held_out

ACCURACY = f"{TASK}/accuracy"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a batch shows to the classifier: its modalities, and labels at the level, without left-out classes."""

    level: CategoryLevel
    classes: ClassChoice
    modalities: tuple[str, ...]

    def __call__(self, batch: Batch) -> Batch:
        label_B = torch.from_numpy(self.classes.apply(self.level.apply(batch.label_B.numpy())))
        shown = with_modalities(batch, self.modalities)
        shown.label_B = label_B
        return shown


class EarlyStopping(Validation):
    """Accuracy on the validation split: the best checkpoint is kept, and training ends when none is better for long."""

    def __init__(self, patience: int) -> None:
        """`patience`: validations without a better accuracy before training ends."""
        self.patience = patience
        self.best = -1.0
        """Best accuracy so far."""
        self.worse = 0
        """Validations since the best one."""

    @property
    def finished(self) -> bool:  # type: ignore[override]
        return self.worse >= self.patience

    @torch.no_grad()
    def measure(self, job: Job, stop: StopRequest) -> dict[str, float] | None:
        """Loss and accuracy. ValueError without a validation split, or without a labelled product in it."""
        if job.sources.validation is None:
            raise ValueError(
                "classification.patience needs shards with a validation split; set it to 0 or build them anew"
            )
        sums = Sums(job)
        try:
            for batch in held_out(job, stop):
                sums.add(batch)
        except Interrupted:
            return None
        report = sums.report()
        if ACCURACY not in report:
            raise ValueError("classification.patience: no validation product has a label of a kept class; set it to 0")
        return report

    def note(self, job: Job, report: dict[str, float]) -> None:
        if report[ACCURACY] <= self.best:
            self.worse += 1
            return
        self.best, self.worse = report[ACCURACY], 0
        job.save_to(job.directory / BEST / run_directory.CHECKPOINTS, keep=1)

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "worse": self.worse}

    def resume(self, state: dict[str, Any]) -> None:
        self.best, self.worse = state.get("best", self.best), state.get("worse", self.worse)


def prepare(evaluation: Evaluation, pretrained: Pretrained, ds: ds_config.DeepSpeedJson, resume: str) -> Job:
    """The job at the step that it goes on from; the model has its classification objective already. Collective.

    `ValueError` for a checkpoint of another run.
    """
    settings, classes, model = evaluation.settings, evaluation.classes, pretrained.model
    config = RunConfig(
        name=TASK,
        output_dir=str(folder_of(settings)),
        seed=settings.seed,
        plugins=pretrained.model.config.plugins or [],
        data=settings.data,
        model=model.spec,
        train=settings.train,
    )
    directory, saved = start.find_run(config, resume)
    finetuning = {
        "task": TASK,
        "pretrained": pretrained.source,
        "pretrained_fingerprint": pretrained.fingerprint,
        "num_classes": len(classes.count_C),
        "lora_rank": settings.classification.lora_rank,
        "lora_alpha": settings.classification.lora_alpha,
        "settings": downstream_settings.to_dict(settings),
    }
    if saved is not None:
        _check_same_finetuning(saved, finetuning)
    opened = sources.open_sources(config, evaluation.shards, pretrained.tokenizer, evaluation.labelled)
    planned = start.plan(config, ds, opened, saved, finetune=finetuning)
    with distributed.stop_together():
        if distributed.rank() == 0:
            run_directory.write_description(directory, config, planned.resolved, planned.identity)
    patience = settings.classification.patience
    return Job.at(
        saved,
        planned,
        config=config,
        directory=directory,
        sources=opened,
        model=model,
        objectives=(TASK,),
        engine=start.start_engine(model, config, planned, saved),
        validation=EarlyStopping(patience) if patience else Validation(),
        prepare=Labels(level=evaluation.level, classes=classes, modalities=settings.classification.shown(model.names)),
    )


def _check_same_finetuning(saved: checkpoint.SavedCheckpoint, now: dict[str, Any]) -> None:
    before = saved.state.get("finetune")
    where = f"{saved.root / saved.tag}"
    if before is None:
        raise ValueError(f"{where}: a pretraining checkpoint; pass it as --checkpoint and start with --resume none")
    if before["pretrained_fingerprint"] != now["pretrained_fingerprint"]:
        raise ValueError(
            f"{where}: was finetuned from other weights ({before['pretrained']}); pass those as --checkpoint"
        )
    if before["settings"]["classification"] != now["settings"]["classification"]:
        raise ValueError(f"{where}: the classification section differs from this run's; resume with the same settings")
    levels = [settings.get("category_level", LEAF) for settings in (before["settings"], now["settings"])]
    if levels[0] != levels[1]:
        raise ValueError(
            f"{where}: was finetuned at category_level {levels[0]}, not {levels[1]}; resume with the same settings"
        )


def describe(job: Job, settings: DownstreamConfig, classes: ClassChoice) -> str:
    """A few lines before the first step."""
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in job.model.parameters() if p.requires_grad)
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in job.model.parameters())
    dropped = f", {len(classes.dropped)} rare ones left out" if classes.dropped else ""
    return (
        f"classification -> {job.directory}\n"
        f"  {int((classes.count_C > 0).sum())} categories{dropped}; {int(classes.count_C.sum())} labelled"
        f" products\n  tuning {settings.classification.tuning}: {trained / 1e6:.2f} of {whole / 1e6:.2f} M parameters;"
        f" steps {job.step} to {job.total_steps}\n  {job.precision}, on {job.engine.device}"
    )


def learning_curve(directory: Path) -> list[dict[str, Any]]:
    """The run's records, for the report."""
    path = directory / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
