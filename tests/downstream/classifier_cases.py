"""A tiny model made into a classifier, and what the tests ask of it."""

from dataclasses import dataclass

import numpy as np
from downstream_examples import tiny_model

from m5ds.downstream.embed.presence import with_modalities
from m5ds.downstream.finetuning.classifier import add_classifier
from m5ds.downstream.settings import ClassificationConfig
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.classification import TASK, Classification


@dataclass
class Classifier:
    """The model, its classification objective, and the modalities that are shown."""

    model: M5ForPretraining
    objective: Classification
    shown: tuple[str, ...]

    @property
    def head(self):
        return self.objective.head

    def train(self, mode=True):
        self.model.train(mode)
        return self

    def eval(self):
        return self.train(False)

    def forward(self, batch, seed=0, **counts):
        counts = counts or {TASK: int((batch.label_B >= 0).sum())}
        shown = with_modalities(batch, self.shown)
        return self.model(
            shown, counts={"products": 1, **counts}, seed=seed, masked=False, chosen=(TASK,), measure=True
        )

    def loss(self, batch, seed=0, **counts):
        return self.forward(batch, seed, **counts).loss

    def outputs(self, batch, seed=0):
        """(dense_BH, logits_BC)."""
        shown = with_modalities(batch, self.shown)
        fused_BMD = self.model(shown, masked=False, seed=seed).fused_BMD
        return self.head(fused_BMD.flatten(1), shown, seed)

    def logits(self, batch, seed=0):
        return self.outputs(batch, seed)[1]


def classifier(tmp_path, *overrides, seed=0, count_C=(2, 2, 2, 2), **options) -> Classifier:
    """Of four classes, in training mode."""
    model = tiny_model(tmp_path, *overrides)
    settings = ClassificationConfig(**({"dense_size": 12, "dropout": 0.0} | options))
    objective = add_classifier(model, settings, np.array(count_C), seed=seed)
    return Classifier(model, objective, settings.shown(model.names)).train()
