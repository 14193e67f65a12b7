"""InfoNCE between modalities' unimodal summaries over the global batch (paper Eq. 2, DESIGN 3.4).

B local products, C products of the global batch, M modalities, R the projection's width, P pairs.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from m5ds.inputs import STRICT
from m5ds.kernels.presence_contrastive import presence_contrastive
from m5ds.model.objectives.base import ObjectiveContext, States, TermWeights, register
from m5ds.model.objectives.pairs import PairObjective, Pairs, bounded_scale
from m5ds.model.objectives.pool import Gather, Pool, PoolInputs
from m5ds.model.precision import at_least_float32


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ContrastiveConfig:
    """InfoNCE between modalities' unimodal summaries (paper Eq. 2)."""

    pairs: Literal["chain", "all"] | list[tuple[str, str]] = "chain"
    """`chain`: neighbours in table order (M5-MMT, v1); `all`: every pair (SCALE)."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.1
    learn_temperature: bool = True
    positives: Literal["product", "group"] = "product"
    """`group`: products of one catalogue group (variants of one product) are left out of each other's denominators, so
    that nothing pushes them apart. The group is the record's own: byte-equal media of two groups stay negatives."""


@register("contrastive")
class Contrastive(PairObjective):
    """InfoNCE over the chosen pairs. Owns the logit scale, kept as a logarithm and used in fp32."""

    config_class = ContrastiveConfig
    family = "itc"

    def __init__(self, config: ContrastiveConfig, context: ObjectiveContext) -> None:
        super().__init__(config, context)
        self.global_loss = InfoNCE(self.pairs)
        self.initial_log_scale = math.log(1.0 / config.temperature)
        self.learned = config.learn_temperature
        if self.learned:
            self.logit_scale = nn.Parameter(torch.zeros(1))

    def initial_value(self, name: str) -> float | None:
        """log(1 / temperature) for the logit scale (m5ds.model.initialization)."""
        return self.initial_log_scale if name == "logit_scale" else None

    def logged_parameters(self) -> dict[str, tuple[nn.Parameter, Callable[[Tensor], Tensor]]]:
        if not self.learned:
            return {}
        return {f"{self.name}/temperature": (self.logit_scale, lambda value: torch.exp(-value))}

    def forward(self, states: States, weights: TermWeights, coefficient_K: Tensor, pool: Pool | None) -> Tensor:
        """Mean of both directions of each pair."""
        assert pool is not None
        device = states.unimodal_BMR.device
        fixed = torch.tensor(self.initial_log_scale, device=device)
        log_scale = at_least_float32(self.logit_scale[0]) if self.learned else fixed
        return pool(self.pool_inputs(states, weights, bounded_scale(log_scale)), coefficient_K)


class InfoNCE:
    """The loss over the global batch, by the kernel: no B x C matrix is made."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def sums(self, inputs: PoolInputs, gather: Gather) -> Tensor:
        """Local sums, mean of both directions: fp32 [P]."""
        features_BMR = inputs.features_BMR
        keys_CMR, keys_present_CM, row_offset = gather(features_BMR, inputs.present_BM)
        groups = None if inputs.group_B is None else (inputs.group_B, gather.integers(inputs.group_B))
        loss_P2 = presence_contrastive(
            features_BMR,
            keys_CMR,
            inputs.present_BM,
            keys_present_CM,
            torch.arange(features_BMR.shape[0], device=features_BMR.device) + row_offset,
            self._pairs,
            inputs.scalars,
            inputs.logit_weight_BK,
            inputs.loss_weight_BK,
            groups=groups,
        )
        return loss_P2.mean(1)
