"""Finetuning's loop in one process: validation, damaged files and requests to stop, without DeepSpeed."""

import json
import signal

import numpy as np
import pytest
from finetune_cases import Monitor, Stop, Validation

from m5ds.downstream.measure.categories import CategoryLevel
from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig
from m5ds.downstream.tasks import finetune
from m5ds.downstream.tasks.labels import ClassChoice


def listed(job):
    path = job.directory / "bad_media.jsonl"
    return [json.loads(line)["product_id"] for line in path.read_text().splitlines()] if path.exists() else []


def test_damaged_validation_files_are_listed_once_and_not_counted(job):
    assert finetune._validate(job, Monitor(), Stop())
    job.sources.validation = Validation(job.sources.validation.batches)
    assert finetune._validate(job, Monitor(), Stop())
    assert listed(job) == ["p0", "p1"]
    assert (job.budget.num_bad, job.budget.num_decoded) == (0, 0)


def test_validation_reports_the_accuracy_and_mean_loss_of_labelled_products_in_evaluation_mode(job):
    monitor = Monitor()
    assert finetune._validate(job, monitor, Stop())
    (batch,) = job.sources.validation.batches
    job.model.eval()
    output = job.model(batch, counts={"classification": 7}, seed=job.config.seed)
    known_B = batch.label_B >= 0
    correct = float((output.logits_BC.argmax(1) == batch.label_B)[known_B].float().mean())
    ((step, values),) = monitor.validations()
    assert step == 0 and values["accuracy"] == pytest.approx(correct)
    assert values["loss"] == pytest.approx(output.loss.item(), rel=1e-5)
    assert job.engine.modes == [False] * 3


def test_a_stop_request_ends_a_validation_at_its_next_step_and_leaves_training_mode_on(job):
    job.engine.eval()
    monitor = Monitor()
    assert not finetune._validate(job, monitor, Stop(at=3))
    assert job.sources.validation.taken == 3 and len(job.engine.modes) == 2
    assert job.sources.validation.closed and job.model.training
    assert (job.best, job.worse, job.validated, monitor.validations()) == (-1.0, 0, 0, [])
    assert listed(job) == ["p0", "p1"]


def test_a_run_stopped_within_a_validation_saves_at_once_and_makes_the_validation_up_on_resume(job):
    monitor = Monitor()
    # Two looks before the steps, then the validation's.
    assert finetune.finetune(job, monitor, Stop(at=4)) == signal.SIGTERM
    assert job.saved == [(job.directory.name, 2, 0)]
    assert monitor.validations() == [] and job.step == 2
    job.saved.clear()
    job.sources.validation = Validation(job.sources.validation.batches)
    assert finetune.finetune(job, monitor, Stop()) == 0
    assert [step for step, _ in monitor.validations()] == [2, 4]
    assert job.saved[0][0] == "best" and job.saved[0][1:] == (2, 2)
    assert job.step == 4 and job.validated == 4


def test_a_stop_within_the_last_validation_is_told_to_the_caller(job):
    monitor = Monitor()
    # Two steps, a validation's three, two steps: the ninth look lies in the last validation.
    assert finetune.finetune(job, monitor, Stop(at=9)) == signal.SIGTERM
    assert (job.step, job.validated) == (4, 2) and [step for step, _ in monitor.validations()] == [2]
    assert finetune.finetune(job, monitor, Stop()) == 0
    assert [step for step, _ in monitor.validations()] == [2, 4]


def test_early_stopping_counts_validations_without_a_better_accuracy(job):
    job.settings = DownstreamConfig(name="t", classification=ClassificationConfig(dense_size=8, patience=1))
    job.best = 1.0
    monitor = Monitor()
    assert finetune.finetune(job, monitor, Stop()) == 0
    assert (job.step, job.worse, job.best) == (2, 1, 1.0)
    assert [step for step, _ in monitor.validations()] == [2]


def test_labels_are_taken_at_the_configured_level_before_rare_classes_go(job):
    job.level = CategoryLevel.of(["Home / A", "Toys", "Home / B"], 1)
    job.classes = ClassChoice(count_C=np.array([5, 0]), kept_C=np.array([True, False]), dropped=("Toys",))
    (batch,) = job.sources.validation.batches
    assert job.relabel(batch).label_B.tolist() == [0, -1, 0, 0, -1, 0, -1, 0]
