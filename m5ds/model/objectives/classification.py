"""Classification of products by a linear head over their fused summaries (paper task 3).

The head follows the released code: the modalities' summaries side by side, a linear layer, dropout, a linear layer to
the classes (PAPER.md section 1.3, "classifier"). B products, M modalities, D width, W = M * D, H dense, C classes.
"""

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from m5ds.batch import Batch
from m5ds.inputs import STRICT
from m5ds.kernels.common import philox
from m5ds.model.objectives.base import Objective, ObjectiveContext, States, Term, TermWeights, register
from m5ds.model.objectives.pool import Pool

TASK = "classification"
_DROPOUT_INDEX = 0xFFFF
"""Philox index of the head's dropout, above every layer's."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClassificationObjectiveConfig:
    """A head to `num_classes` classes; what weighs the classes is set from their counts (`set_classes`)."""

    num_classes: Annotated[int, Field(gt=0)]
    dense_size: Annotated[int, Field(gt=0)] = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight: Annotated[float, Field(ge=0)] = 1.0


class ClassifierHead(nn.Module):
    """Linear, keyed dropout, linear."""

    def __init__(self, width: int, dense_size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, dense_size)
        self.output = nn.Linear(dense_size, num_classes)
        self.dropout = dropout

    def forward(self, features_BW: Tensor, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """(dense_BH, logits_BC), both fp32."""
        dense_BH = self.dense(features_BW.to(self.dense.weight.dtype))
        dropped_BH = dense_BH
        if self.training and self.dropout > 0:
            dropped_BH = _keyed_dropout(dense_BH, batch, self.dropout, seed)
        return dense_BH.float(), self.output(dropped_BH).float()

    @torch.no_grad()
    def logits(self, dense_NH: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, C] from the dense features of many products, without dropout."""
        weight = self.output.weight
        return self.output(torch.from_numpy(dense_NH).to(weight)).float().cpu().numpy()


def _keyed_dropout(x_BH: Tensor, batch: Batch, probability: float, seed: int) -> Tensor:
    words_BH = philox.random_words(
        seed=seed,
        draw=batch.draw_B[:, None],
        product=batch.product_B[:, None],
        stream=philox.Stream.HIDDEN_DROPOUT,
        element=torch.arange(x_BH.shape[1]),
        index=_DROPOUT_INDEX,
    )[0]
    kept_BH = (words_BH >= philox.threshold(probability)).to(x_BH.device)
    return torch.where(kept_BH, x_BH / (1 - probability), x_BH.new_zeros(()))


@register(TASK)
class Classification(Objective):
    """Cross-entropy of `batch.label_B`; a label below 0 takes no part."""

    config_class = ClassificationObjectiveConfig

    def __init__(self, config: ClassificationObjectiveConfig, context: ObjectiveContext) -> None:
        super().__init__()
        spec = context.model.spec
        self.terms = (Term(name=context.name, weight=config.weight),)
        width = len(spec.modality_names) * spec.hidden_size
        self.head = ClassifierHead(width, config.dense_size, config.num_classes, config.dropout)
        self.weight_C: Tensor = torch.ones(config.num_classes)
        """What each class weighs in the loss. Not a buffer, which DeepSpeed would round to bf16."""
        self.shift_C: Tensor = torch.zeros(config.num_classes)
        """What is added to each class's logit in the loss."""

    def set_classes(self, weight_C: NDArray[np.float32], shift_C: NDArray[np.float32]) -> None:
        """fp32 [C] each: weights of the classes and shifts of their logits."""
        self.weight_C, self.shift_C = torch.from_numpy(weight_C), torch.from_numpy(shift_C)

    def count_targets(self, batch: Batch, seed: int) -> dict[str, int]:
        """Labelled products."""
        return {self.terms[0].name: int((batch.label_B >= 0).sum())}

    def forward(self, states: States, weights: TermWeights, coefficient_K: Tensor, pool: Pool | None) -> Tensor:
        _, logits_BC = self.head(states.fused_BMD.flatten(1), states.batch, states.seed)
        device = logits_BC.device
        summed = nn.functional.cross_entropy(
            logits_BC + self.shift_C.to(device),
            states.batch.label_B.to(device),
            weight=self.weight_C.to(device),
            reduction="sum",
            ignore_index=-1,
        )
        return summed[None]

    def measures(self, states: States) -> dict[str, Tensor]:
        """`accuracy`: labelled products whose largest logit is that of their class."""
        logits_BC = self.head(states.fused_BMD.flatten(1), states.batch, states.seed)[1]
        label_B = states.batch.label_B.to(logits_BC.device)
        return {"accuracy": ((logits_BC.argmax(1) == label_B) & (label_B >= 0)).sum()}
