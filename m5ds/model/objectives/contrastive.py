"""The contrastive objective over the gathered batch, and the sum of all losses of a forward (DESIGN 3.4).

B local products, C products of the gathered batch, M modalities, R the projection's width, P pairs, K loss terms.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from m5ds.config import ContrastiveConfig
from m5ds.kernels.presence_contrastive import presence_contrastive
from m5ds.model.objectives.pool import ContrastivePool
from m5ds.model.precision import wide

Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]
"""(features_BMR, present_BM) -> (all_features_CMR, all_present_CM, row_offset): cross-rank, with gradient to the
features.
"""

MAX_LOG_SCALE = math.log(100.0)
"""CLIP's bound: the temperature never falls below 0.01."""


def gather_locally(features_BMR: Tensor, present_BM: Tensor) -> tuple[Tensor, Tensor, int]:
    """The gather of a single rank."""
    return features_BMR, present_BM, 0


class Contrastive(nn.Module):
    """InfoNCE over the model's pairs. Owns the logit scale, kept as a logarithm and used in fp32."""

    def __init__(self, config: ContrastiveConfig, pairs: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.pairs = pairs
        self.initial_log_scale = math.log(1.0 / config.temperature)
        self.learned = config.learn_temperature
        if self.learned:
            self.logit_scale = nn.Parameter(torch.zeros(1))

    def initial_value(self, name: str) -> float | None:
        """log(1 / temperature) for the logit scale (m5ds.model.initialization)."""
        return self.initial_log_scale if name == "logit_scale" else None

    def forward(
        self,
        features_BMR: Tensor,
        present_BM: Tensor,
        gather: Gather | ContrastivePool,
        logit_weight_BP: Tensor | None,
        loss_weight_BP: Tensor | None,
        coefficient_P: Tensor,
    ) -> Tensor:
        """Local sums of the loss, mean of both directions: fp32 [P]. Every rank calls it, whatever its batch holds.

        `coefficient_P` is what the total multiplies each sum with; a pool needs it before the total is known.
        """
        device = features_BMR.device
        log_scale = wide(self.logit_scale[0]) if self.learned else torch.tensor(self.initial_log_scale, device=device)
        scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
        if isinstance(gather, ContrastivePool):
            return gather(features_BMR, present_BM, scale, logit_weight_BP, loss_weight_BP, coefficient_P)
        keys_CMR, keys_present_CM, row_offset = gather(features_BMR, present_BM)
        loss_P2 = presence_contrastive(
            features_BMR,
            keys_CMR,
            present_BM,
            keys_present_CM,
            torch.arange(features_BMR.shape[0], device=device) + row_offset,
            self.pairs,
            scale,
            logit_weight_BP,
            loss_weight_BP,
        )
        return loss_P2.mean(1)
