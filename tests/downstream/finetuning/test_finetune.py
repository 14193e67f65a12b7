"""Finetuning in the one loop, in one process: validation, early stopping, requests to stop, without DeepSpeed."""

import dataclasses
import json
import signal

import numpy as np
import pytest
from finetune_cases import LABELS, LEVEL, Monitor, Stop, Validation

from m5ds.downstream.finetuning.job import ACCURACY, EarlyStopping, Labels
from m5ds.downstream.measure.categories import CategoryLevel
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.train.checkpoints import checkpoint
from m5ds.train.loop import train

LOSS = "loss/classification"


def listed(job):
    path = job.directory / "bad_media.jsonl"
    return [json.loads(line)["product_id"] for line in path.read_text().splitlines()] if path.exists() else []


def test_damaged_validation_files_are_listed_once_and_not_counted(job):
    assert job.validation.measure(job, Stop())
    job.sources.validation = Validation(job.sources.validation.batches)
    assert job.validation.measure(job, Stop())
    assert listed(job) == ["p0", "p1"]
    assert (job.budget.num_bad, job.budget.num_decoded) == (0, 0)


def test_validation_reports_the_accuracy_and_mean_loss_of_labelled_products_in_evaluation_mode(job):
    report = job.validation.measure(job, Stop())
    (batch,) = job.sources.validation.batches
    job.model.eval()
    output = job.model(batch, counts={"products": 8, "classification": 7}, masked=False, chosen=("classification",))
    head = job.model.objectives["classification"].head
    logits_BC = head(output.fused_BMD.flatten(1), batch, job.config.seed)[1]
    known_B = batch.label_B >= 0
    correct = float((logits_BC.argmax(1) == batch.label_B)[known_B].float().mean())
    assert report == {LOSS: pytest.approx(output.loss.item(), rel=1e-5), ACCURACY: pytest.approx(correct)}
    assert job.engine.modes == [False] * 3


def test_a_stop_request_ends_a_validation_at_its_next_step_and_leaves_training_mode_on(job):
    job.engine.eval()
    assert job.validation.measure(job, Stop(at=3)) is None
    assert job.sources.validation.taken == 3 and len(job.engine.modes) == 2
    assert job.sources.validation.closed and job.model.training
    assert job.validation.state() == {"best": -1.0, "worse": 0}
    assert listed(job) == ["p0", "p1"]


def test_a_run_stopped_within_a_validation_saves_at_once_and_makes_the_validation_up_on_resume(job):
    monitor = Monitor()
    # Two looks before the steps, then the validation's.
    assert train(job, monitor, Stop(at=4)) == signal.SIGTERM
    assert job.saved == [(job.directory.name, 2, -1)]
    assert monitor.validations() == [] and job.step == 2
    job.saved.clear()
    job.sources.validation = Validation(job.sources.validation.batches)
    assert train(job, monitor, Stop()) == 0
    assert [step for step, _ in monitor.validations()] == [2, 4]
    assert job.saved[0] == ("best", 2, 2)
    assert job.step == 4 and job.validated == 4


def test_a_stop_within_the_last_validation_is_told_to_the_caller(job):
    monitor = Monitor()
    # Two steps, a validation's three, two steps: the ninth look lies in the last validation.
    assert train(job, monitor, Stop(at=9)) == signal.SIGTERM
    assert (job.step, job.validated) == (4, 2) and [step for step, _ in monitor.validations()] == [2]
    assert train(job, monitor, Stop()) == 0
    assert [step for step, _ in monitor.validations()] == [2, 4]


def test_early_stopping_counts_validations_without_a_better_accuracy(job):
    job.validation = EarlyStopping(patience=1)
    job.validation.best = 1.0
    monitor = Monitor()
    assert train(job, monitor, Stop()) == 0
    assert (job.step, job.validation.worse, job.validation.best) == (2, 1, 1.0)
    assert [step for step, _ in monitor.validations()] == [2]
    assert job.saved == [(job.directory.name, 2, 2)], "an ended run is saved once, and none is a new best"


@pytest.mark.parametrize(("best", "saved", "worse"), [(-1.0, ["best"], 0), (1.0, [], 4)])
def test_only_a_better_accuracy_is_a_new_best(job, best, saved, worse):
    job.validation.best, job.validation.worse = best, 3
    report = job.validation.measure(job, Stop())
    job.validation.note(job, report)
    assert [name for name, *_ in job.saved] == saved and job.validation.worse == worse
    assert job.validation.best == max(best, report[ACCURACY])
    job.validation.note(job, report)
    assert job.validation.worse == worse + 1, "an equal one is not better"


def test_what_early_stopping_knows_survives_a_checkpoint():
    one, other = EarlyStopping(3), EarlyStopping(3)
    one.best, one.worse = 0.5, 3
    other.resume(one.state() | {"step": 7})
    assert (other.best, other.worse, other.finished) == (0.5, 3, True)
    other.resume({})
    assert (other.best, other.worse) == (0.5, 3)
    fresh = EarlyStopping(1)
    fresh.resume({})
    assert (fresh.best, fresh.worse, fresh.finished) == (-1.0, 0, False)


def test_validation_needs_a_split_with_labels_of_kept_classes(job):
    job.prepare = lambda batch: dataclasses.replace(batch, label_B=batch.label_B.clone().fill_(-1))
    with pytest.raises(ValueError, match="no validation product has a label of a kept class; set it to 0"):
        job.validation.measure(job, Stop())
    job.sources.validation = None
    with pytest.raises(ValueError, match="needs shards with a validation split"):
        job.validation.measure(job, Stop())


def test_labels_are_taken_at_the_configured_level_before_rare_classes_go(job):
    level = CategoryLevel.of(["Home / A", "Toys", "Home / B"], 1)
    classes = ClassChoice(count_C=np.array([5, 0]), kept_C=np.array([True, False]), dropped=("Toys",))
    (batch,) = job.sources.validation.batches
    prepared = Labels(level=level, classes=classes, modalities=job.model.names)(batch)
    assert prepared.label_B.tolist() == [0, -1, 0, 0, -1, 0, -1, 0]


def test_only_the_configured_modalities_are_shown(job):
    (batch,) = job.sources.validation.batches
    shown = dataclasses.replace(job.prepare, modalities=("image", "text"))(batch)
    assert not shown.present_BM[:, 2:].any() and (shown.present_BM[:, :2] == batch.present_BM[:, :2]).all()


def test_products_of_left_out_classes_neither_teach_nor_are_tested(job, monkeypatch):
    classes = ClassChoice(count_C=np.array([3, 0, 5]), kept_C=np.array([True, False, True]), dropped=("b",))
    job.prepare = Labels(level=LEVEL, classes=classes, modalities=job.model.names)
    kept = [label if label != 1 else -1 for label in LABELS]
    report = job.validation.measure(job, Stop())
    (batch,) = job.sources.validation.batches
    output = job.model.eval()(batch, masked=False)
    head = job.model.objectives["classification"].head
    predicted = head(output.fused_BMD.flatten(1), batch, 0)[1].argmax(1).tolist()
    right = [guess == label for guess, label in zip(predicted, kept, strict=True) if label >= 0]
    assert report[ACCURACY] == pytest.approx(sum(right) / 5)
    taught = []
    objective = job.model.objectives["classification"]
    targets = objective.count_targets
    monkeypatch.setattr(
        objective, "count_targets", lambda batch, seed: taught.append(batch.label_B.tolist()) or targets(batch, seed)
    )
    train(job, Monitor(), Stop())
    assert taught and all(labels == kept for labels in taught)


def test_losses_and_rate_are_recorded_every_so_often(job):
    monitor = Monitor()
    assert train(job, monitor, Stop()) == 0
    steps = [(step, values) for step, kind, values in monitor.records if kind == "train"]
    assert [step for step, _ in steps] == [1, 4]
    assert all(values["optimizer/learning_rate"] == 0.25 and values["loss/total"] > 0 for _, values in steps)
    assert all(values["loss/total"] == pytest.approx(values[LOSS], rel=1e-6) for _, values in steps)
    assert job.budget.num_decoded == 4


def test_a_frozen_encoder_gives_the_states_of_evaluation_all_through_the_loop(job):
    """The loop and each validation turn training mode on; it is the head's alone."""
    job.model.frozen = True
    modes, head = [], job.model.objectives["classification"].head
    job.model.register_forward_pre_hook(lambda *_: modes.append((job.model.blocks.training, head.training)))
    assert train(job, Monitor(), Stop()) == 0
    step, validation = [(False, True)], [(False, False)]
    assert modes == (step * 2 + validation * 3) * 2


def test_the_best_checkpoint_is_one_and_holds_what_led_to_it(job, monkeypatch):
    wrote = []

    def save(engine, root, state, *, keep, write_extras):
        wrote.append((root.relative_to(job.directory).as_posix(), state["step"], keep, state["best"], state["worse"]))
        return f"step-{state['step']:08d}"

    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "save", save)
    monitor = Monitor()
    assert train(job, monitor, Stop()) == 0
    accuracy = monitor.validations()[0][1][ACCURACY]
    kept = job.config.train.keep_last
    assert wrote == [
        ("best/checkpoints", 2, 1, accuracy, 0),
        ("checkpoints", 4, kept, accuracy, 1),
    ], "the model does not change, so the second validation is no better"
