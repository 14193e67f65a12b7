"""Masked heads on the fused states: what was masked is predicted, and the loss is a sum over masked rows (DESIGN 3.4).

K masked rows of one modality in the batch (maybe none: the head then runs on zero rows and gives zero gradients), D
hidden width, F features of a row, V tokens. A head is registered by name; a new one is a class with `forward` as
below.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m5ds.batch import ModalityRows
from m5ds.config import ModalityConfig
from m5ds.kernels.masked_cross_entropy import masked_cross_entropy
from m5ds.model.precision import at_least_float32


@dataclass(frozen=True, kw_only=True)
class HeadContext:
    """What a head may need to build itself."""

    modality: str
    config: ModalityConfig
    hidden_size: int
    layer_norm_eps: float
    token_table: nn.Parameter | None
    """The modality's token table [V, D], which a vocabulary head shares; None where it has none."""


HeadFactory = Callable[[HeadContext], nn.Module]
_HEADS: dict[str, HeadFactory] = {}


def register(name: str) -> Callable[[HeadFactory], HeadFactory]:
    """Make a head known to configurations under this name."""

    def add(factory: HeadFactory) -> HeadFactory:
        _HEADS[name] = factory
        return factory

    return add


def build(context: HeadContext) -> nn.Module:
    """The head that the modality's configuration names. ValueError: unknown name, or an input it cannot predict."""
    name = context.config.head
    if name not in _HEADS:
        raise ValueError(
            f"model.modalities.{context.modality}.head {name!r} is unknown; registered: {', '.join(sorted(_HEADS))}"
        )
    return _HEADS[name](context)


@register("regression")
class RegressionHead(nn.Module):
    """Mean squared error of each masked row's features; raw media are standardised per row first (mean 0, deviation
    1).
    """

    def __init__(self, context: HeadContext) -> None:
        super().__init__()
        spec = context.config.input
        if spec.dim is None:
            raise ValueError(
                f"model.modalities.{context.modality}.head: regression needs rows of features, {spec.kind} has tokens;"
                " use head: vocabulary"
            )
        self.standardize = spec.standardized_targets
        self.norm = nn.LayerNorm(context.hidden_size, eps=context.layer_norm_eps)
        self.decoder = nn.Linear(context.hidden_size, spec.dim)

    def forward(
        self,
        hidden_KD: Tensor,
        rows: ModalityRows,
        masked_K: Tensor,
        loss_weight_K: Tensor | None = None,
        logit_weight_K: Tensor | None = None,
    ) -> Tensor:
        """Sum over masked rows of the mean squared error over features, fp32 scalar. `masked_K` indexes the content
        rows.
        """
        predicted_KF = at_least_float32(self.decoder(self.norm(hidden_KD)))
        if logit_weight_K is not None:
            predicted_KF = predicted_KF * logit_weight_K[:, None]
        assert rows.values_NF is not None
        target_KF = rows.values_NF.index_select(0, masked_K).to(predicted_KF.dtype)
        if self.standardize:
            target_KF = standardized(target_KF)
        loss_K = F.mse_loss(predicted_KF, target_KF, reduction="none").mean(1)
        return (loss_K if loss_weight_K is None else loss_K * loss_weight_K).sum()


def standardized(values_KF: Tensor, eps: float = 1e-6) -> Tensor:
    """Each row with mean 0 and deviation 1 over its features; a constant row becomes zeros."""
    centred_KF = values_KF - values_KF.mean(1, keepdim=True)
    return centred_KF * torch.rsqrt(centred_KF.square().mean(1, keepdim=True) + eps)


@register("vocabulary")
class VocabularyHead(nn.Module):
    """BERT's masked token head: transform, then the modality's own token table as decoder."""

    def __init__(self, context: HeadContext) -> None:
        super().__init__()
        if context.token_table is None:
            raise ValueError(
                f"model.modalities.{context.modality}.head: vocabulary needs tokens,"
                f" {context.config.input.kind} has none; use head: regression"
            )
        self.transform = nn.Linear(context.hidden_size, context.hidden_size)
        self.norm = nn.LayerNorm(context.hidden_size, eps=context.layer_norm_eps)
        # The same Parameter in two modules: ZeRO-3 gathers it for each module's own forward.
        self.decoder_weight = context.token_table
        # zero.Init hides the table's shape, so the vocabulary's size is read where ZeRO keeps it.
        vocab_size = getattr(context.token_table, "ds_shape", context.token_table.shape)[0]
        self.decoder_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self,
        hidden_KD: Tensor,
        rows: ModalityRows,
        masked_K: Tensor,
        loss_weight_K: Tensor | None = None,
        logit_weight_K: Tensor | None = None,
    ) -> Tensor:
        """Sum over masked rows of the cross-entropy of the true token, fp32 scalar. `masked_K` indexes the content
        rows.
        """
        assert rows.token_N is not None
        target_K = rows.token_N.index_select(0, masked_K)
        weights = {"logit_weight_K": logit_weight_K, "loss_weight_K": loss_weight_K}
        h_KD = self._transformed(hidden_KD)
        return masked_cross_entropy(h_KD, self.decoder_weight, self.decoder_bias, target_K, **weights)

    def _transformed(self, hidden_KD: Tensor) -> Tensor:
        return self.norm(F.gelu(self.transform(hidden_KD)))
