"""Sigmoid contrastive loss between modalities' unimodal summaries (Zhai et al., "Sigmoid loss for language image
pre-training", ICCV 2023): every pair of products is a question of its own, same product or not.

B local products, C products of the global batch, M modalities, R the projection's width, P pairs of modalities.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from m5ds.inputs import STRICT
from m5ds.model.objectives.base import ObjectiveContext, States, TermWeights, register
from m5ds.model.objectives.pairs import PairObjective, Pairs, bounded_scale
from m5ds.model.objectives.pool import Gather, Pool, PoolInputs
from m5ds.model.precision import at_least_float32


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SigmoidConfig:
    """The defaults are the paper's."""

    pairs: Literal["chain", "all"] | list[tuple[str, str]] = "chain"
    """`chain`: neighbours in table order; `all`: every pair."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.1
    bias: float = -10.0
    """Of the logits at the start: nearly all pairs of products are negatives."""
    positives: Literal["product", "group"] = "product"
    """`group`: products of one catalogue group are no negatives of each other (as in `contrastive`)."""


@register("sigmoid")
class Sigmoid(PairObjective):
    """Owns the logit scale (as a logarithm) and the bias, used in fp32."""

    config_class = SigmoidConfig
    family = "sig"

    def __init__(self, config: SigmoidConfig, context: ObjectiveContext) -> None:
        super().__init__(config, context)
        self.global_loss = SigmoidLoss(self.pairs)
        self.initial = {"logit_scale": math.log(1.0 / config.temperature), "logit_bias": config.bias}
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))

    def initial_value(self, name: str) -> float | None:
        """Where the scale and the bias start (m5ds.model.initialization)."""
        return self.initial.get(name)

    def logged_parameters(self) -> dict[str, tuple[nn.Parameter, Callable[[Tensor], Tensor]]]:
        return {
            f"{self.name}/temperature": (self.logit_scale, lambda value: torch.exp(-value)),
            f"{self.name}/bias": (self.logit_bias, lambda value: value),
        }

    def forward(self, states: States, weights: TermWeights, coefficient_K: Tensor, pool: Pool | None) -> Tensor:
        assert pool is not None
        scale = bounded_scale(at_least_float32(self.logit_scale[0]))
        scalars = torch.stack([scale, at_least_float32(self.logit_bias[0])])
        return pool(self.pool_inputs(states, weights, scalars), coefficient_K)


class SigmoidLoss:
    """The loss over the global batch, one pair of modalities after another: memory grows with B x C x P."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def sums(self, inputs: PoolInputs, gather: Gather) -> Tensor:
        """Local sums over queries and all keys that have both modalities: fp32 [P]."""
        features_BMR = at_least_float32(inputs.features_BMR)
        keys_CMR, keys_present_CM, row_offset = gather(features_BMR, inputs.present_BM)
        place_C = torch.arange(keys_CMR.shape[0], device=keys_CMR.device)
        is_same_BC = torch.arange(features_BMR.shape[0], device=keys_CMR.device)[:, None] + row_offset == place_C
        counts_BC = torch.ones_like(is_same_BC)
        if inputs.group_B is not None:
            counts_BC = is_same_BC | (inputs.group_B[:, None] != gather.integers(inputs.group_B)[None, :])
        scale, bias = inputs.scalars.unbind()
        sums = []
        for p, (i, j) in enumerate(self._pairs):
            has_both_B = inputs.present_BM[:, i] & inputs.present_BM[:, j]
            key_C = keys_present_CM[:, i] & keys_present_CM[:, j]
            logits_BC = scale * (features_BMR[:, i] @ keys_CMR[:, j].t()) + bias
            if inputs.logit_weight_BK is not None:
                logits_BC = logits_BC * _of(inputs.logit_weight_BK[:, p], has_both_B)[:, None]
            loss_BC = F.softplus(torch.where(is_same_BC, -logits_BC, logits_BC))
            loss_B = torch.where(has_both_B[:, None] & key_C[None, :] & counts_BC, loss_BC, 0.0).sum(1)
            if inputs.loss_weight_BK is not None:
                loss_B = loss_B * _of(inputs.loss_weight_BK[:, p], has_both_B)
            sums.append(loss_B.sum())
        return torch.stack(sums)


def _of(weight_B: Tensor, is_query_B: Tensor) -> Tensor:
    """The weights, zero where the product is no query: a weight that nobody computed may be NaN."""
    return torch.where(is_query_B, weight_B, 0.0)
