"""A toy plugin: fused vectors of different products repel each other (Wang and Isola, 2020). All that a loss needs.

B products, D width.
"""

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from m5ds.batch import Batch
from m5ds.inputs import STRICT
from m5ds.model.objectives.base import Objective, ObjectiveContext, States, Term, TermWeights, register
from m5ds.model.objectives.pool import Pool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UniformityConfig:
    """How far apart is far enough."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    sharpness: Annotated[float, Field(gt=0)] = 2.0


@register("toy_uniformity")
class Uniformity(Objective):
    """Each product's mean potential among the products of its micro-batch; a weight of its own a dimension."""

    config_class = UniformityConfig

    def __init__(self, config: UniformityConfig, context: ObjectiveContext) -> None:
        super().__init__()
        self.terms = (Term(name=context.name, weight=config.weight),)
        self.sharpness = config.sharpness
        self.mix = nn.Linear(context.model.spec.hidden_size, 4, bias=False)

    def count_targets(self, batch: Batch, seed: int) -> dict[str, int]:
        return {self.terms[0].name: int(batch.present_BM.any(dim=1).sum())}

    def forward(self, states: States, weights: TermWeights, coefficient_K: Tensor, pool: Pool | None) -> Tensor:
        present_B = states.present_BM.any(dim=1)
        vector_BD = nn.functional.normalize(self.mix(states.fused_BMD.sum(1)).float(), dim=-1)
        distance_BB = (vector_BD[:, None] - vector_BD[None, :]).square().sum(-1)
        potential_B = torch.exp(-self.sharpness * distance_BB).mean(1)
        return torch.where(present_B, potential_B, 0.0).sum()[None]

    def measures(self, states: States) -> dict[str, Tensor]:
        return {"length": states.fused_BMD.float().norm(dim=-1).mean(1).sum()}
