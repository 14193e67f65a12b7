"""A finetuning job in one process, with an engine, a validation and a monitor that write down what they are asked."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from downstream_examples import tiny_batch, tiny_model, tiny_run

from m5ds.downstream.finetuning.classifier import add_classifier
from m5ds.downstream.finetuning.job import EarlyStopping, Labels
from m5ds.downstream.measure.categories import CategoryLevel
from m5ds.downstream.settings import ClassificationConfig
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.inputs.media import BadMedia
from m5ds.model.objectives.classification import TASK
from m5ds.train.engine.precision import Precision
from m5ds.train.faults import BadMediaBudget
from m5ds.train.job import Job

LABELS = [0, 1, 2, 0, 1, 2, -1, 0]


class Engine:
    """What the loop asks of DeepSpeed's engine, without an optimizer."""

    device = torch.device("cpu")

    def __init__(self, model):
        self.model, self.modes = model, []

    def __call__(self, *arguments, **options):
        self.modes.append(self.model.training)
        return self.model(*arguments, **options)

    def train(self):
        self.model.train()

    def eval(self):
        self.model.eval()

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.model.zero_grad()

    def was_step_applied(self):
        return True

    def get_lr(self):
        return [0.25, 0.5]

    def get_global_grad_norm(self):
        return 1.0


class Stop:
    """Asks to stop from the nth look on; 0: never."""

    def __init__(self, at=0):
        self.at, self.looks = at, 0

    @property
    def requested(self):
        self.looks += 1
        return signal.SIGTERM if self.at and self.looks >= self.at else 0


class Validation:
    """Three steps of a validation split, a damaged file in the first two."""

    num_evaluation_steps = 3

    def __init__(self, batches):
        self.batches, self.taken, self.closed = batches, 0, False

    def evaluation_steps(self):
        for number in range(3):
            self.taken += 1
            bad = [BadMedia(product_id=f"p{number}", member="m", reason="cut")] if number < 2 else []
            yield SimpleNamespace(micro_batches=self.batches, bad_media=bad)

    def close(self):
        self.closed = True


class Training:
    def __init__(self, batches):
        self.batches = batches

    def steps(self, position, num_steps):
        for _ in range(num_steps):
            yield SimpleNamespace(micro_batches=self.batches(), bad_media=[], num_decoded=1, wait_seconds=0.0)


LEVEL = CategoryLevel.of(["Home / A", "Home / B", "Toys"], "leaf")
CLASSES = ClassChoice(count_C=np.array([3, 3, 3]), kept_C=np.ones(3, bool), dropped=())


@pytest.fixture
def job(tmp_path, monkeypatch):
    model = tiny_model(tmp_path)
    add_classifier(model, ClassificationConfig(dense_size=8), CLASSES.count_C, seed=0)
    batches = lambda: [tiny_batch(model, labels=LABELS)]  # noqa: E731
    made = Job(
        config=tiny_run(tmp_path, "train.validate_every=2", "train.global_batch_size=8"),
        directory=tmp_path,
        sources=SimpleNamespace(validation=Validation(batches()), training=Training(batches)),
        model=model,
        objectives=(TASK,),
        engine=Engine(model),
        precision=Precision("fp32", "the test's"),
        validation=EarlyStopping(patience=5),
        total_steps=4,
        identity={},
        budget=BadMediaBudget(tmp_path / "bad_media.jsonl", 0.0),
        prepare=Labels(level=LEVEL, classes=CLASSES, modalities=model.names),
    )
    made.saved = []

    def save_to(self, root, keep):
        made.saved.append((root.parent.name, self.step, self.validated))
        return f"step-{self.step:08d}"

    monkeypatch.setattr(Job, "save_to", save_to)
    return made


class Monitor:
    def __init__(self):
        self.records = []

    def advance(self, **shown):
        pass

    def say(self, line):
        pass

    def record(self, step, kind, values):
        self.records.append((step, kind, values))

    def validations(self):
        return [(step, values) for step, kind, values in self.records if kind == "validation"]
