"""A pretrained model made into a classifier: one more objective on it, and the rest frozen as the task says.

Shape letters: M modalities, D width, C classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from m5ds.downstream.finetuning import lora
from m5ds.downstream.settings import ClassificationConfig
from m5ds.model import initialization
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.base import ObjectiveContext
from m5ds.model.objectives.classification import TASK, Classification, ClassificationObjectiveConfig

_UNUSED = ("objectives.", "projections.", "harmony.")
"""What only pretraining trains."""


def add_classifier(
    model: M5ForPretraining, config: ClassificationConfig, count_C: NDArray[np.int64], *, seed: int
) -> Classification:
    """Give the model a classification objective, and leave trainable what the task trains. Returns the objective.

    `count_C`: training products of each class. `seed` fills the head (and adapters) by parameter name.
    """
    objective = Classification(
        ClassificationObjectiveConfig(num_classes=len(count_C), dense_size=config.dense_size, dropout=config.dropout),
        ObjectiveContext(name=TASK, model=model.config, token_table=model.embeddings.token_table),
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(config.tuning == "full" and not name.startswith(_UNUSED))
    if config.tuning == "lora":
        lora.add_adapters(model, config.lora_rank, config.lora_alpha, seed)
    for name, parameter in objective.head.named_parameters():
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                deviation = parameter.shape[1] ** -0.5
                parameter.copy_(initialization.normal(parameter.shape, seed, f"head.{name}", deviation))
    objective.set_classes(*class_terms(config, count_C))
    model.objectives[TASK] = objective
    model.frozen = config.tuning == "frozen"
    return objective


def class_terms(
    config: ClassificationConfig, count_C: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(weight of each class, what is added to its logit in training), fp32 [C]. Classes without a product weigh 0.

    `class_balanced`: inverse effective number of samples, mean 1 over training products (Cui et al., CVPR 2019).
    `logit_adjusted`: tau times the log of the class's share (Menon et al., ICLR 2021).
    """
    seen_C = count_C > 0
    weight_C, shift_C = np.ones(len(count_C)), np.zeros(len(count_C))
    if config.loss == "class_balanced":
        effective_C = (1 - config.beta ** count_C.astype(np.float64)) / (1 - config.beta)
        weight_C = np.divide(1.0, effective_C, out=np.zeros(len(count_C)), where=seen_C)
        weight_C = weight_C * count_C.sum() / (weight_C * count_C).sum()
    elif config.loss == "logit_adjusted":
        share_C = np.maximum(count_C, 1) / count_C.sum()
        shift_C = config.tau * np.log(share_C)
    return weight_C.astype(np.float32), shift_C.astype(np.float32)
