"""A pretrained encoder with a linear head over its fused summaries (paper task 3), under the pretraining loop's terms.

The head follows the released code: the modalities' summaries side by side, a linear layer, dropout, a linear layer to
the classes (PAPER.md section 1.3, "classifier"). Shape letters: B products, M modalities, D width, H dense, C classes.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m5ds.batch import Batch
from m5ds.downstream.embed.presence import with_modalities
from m5ds.downstream.settings import ClassificationConfig
from m5ds.downstream.tasks import lora
from m5ds.kernels.common import philox
from m5ds.model import initialization
from m5ds.model.m5mmt import M5ForPretraining

TASK = "classification"
_PRETRAINING_PARTS = ("heads.", "projections.", "contrastive.", "harmony.")
_DROPOUT_INDEX = 0xFFFF
"""Philox index of the head's dropout, above every layer's."""


@dataclass(kw_only=True)
class ClassifierOutput:
    """What a forward returns; `losses` and `loss` as M5Output has them."""

    logits_BC: Tensor
    """fp32."""
    dense_BH: Tensor
    """fp32 features below the last layer: the paper's finetuned retrieval features."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None


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


class ProductClassifier(nn.Module):
    """Encoder and head. Offers what the training step asks of a model: `config`, `names`, `tasks`, `forward`, ..."""

    def __init__(self, encoder: M5ForPretraining, config: ClassificationConfig, num_classes: int, *, seed: int) -> None:
        """`seed` fills the head (and adapters) by parameter name. What the task does not train is frozen."""
        super().__init__()
        self.encoder = encoder
        self.config, self.names = encoder.config, encoder.names
        self.modalities = config.shown(self.names)
        self.tasks, self.pair_names = {"label": TASK}, ()
        self.tuning = config.tuning
        self.freeze_encoder()
        if config.tuning == "lora":
            lora.add_adapters(encoder, config.lora_rank, config.lora_alpha, seed)
        width = len(self.names) * encoder.spec.hidden_size
        self.head = ClassifierHead(width, config.dense_size, num_classes, config.dropout)
        for name, parameter in self.head.named_parameters():
            with torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.copy_(
                        initialization.normal(parameter.shape, seed, f"head.{name}", parameter.shape[1] ** -0.5)
                    )
        # Not buffers, which DeepSpeed would round to bf16.
        self.weight_C, self.shift_C = torch.ones(num_classes), torch.zeros(num_classes)

    def freeze_encoder(self) -> None:
        """Everything for the head alone or adapters; for full finetuning what only pretraining uses."""
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(self.tuning == "full" and not name.startswith(_PRETRAINING_PARTS))

    def set_loss(self, config: ClassificationConfig, count_C: NDArray[np.int64]) -> None:
        """Class weights and logit shifts of the configured loss, from the classes' numbers of training products."""
        weight_C, shift_C = class_terms(config, count_C)
        self.weight_C, self.shift_C = torch.from_numpy(weight_C), torch.from_numpy(shift_C)

    def no_weight_decay_names(self) -> set[str]:
        """Biases, norms and single vectors, as in pretraining."""
        inner = {f"encoder.{name}" for name in self.encoder.no_weight_decay_names()}
        return inner | {name for name, parameter in self.named_parameters() if parameter.dim() <= 1}

    def train(self, mode: bool = True) -> "ProductClassifier":
        """A frozen encoder stays in evaluation mode: its features are those that were pretrained."""
        super().train(mode)
        if self.tuning == "frozen":
            self.encoder.eval()
        return self

    def forward(
        self, batch: Batch, *, counts: dict[str, int] | None = None, seed: int = 0, gather: object = None
    ) -> ClassifierOutput:
        """`batch.label_B` below 0 takes no part in the loss. `counts[TASK]`: labelled products of the whole step.

        `gather` is there for the training step's sake; classification needs nothing of other ranks.
        """
        output = self.encoder(with_modalities(batch, self.modalities), seed=seed, masked=False)
        dense_BH, logits_BC = self.head(output.fused_BMD.flatten(1), batch, seed)
        result = ClassifierOutput(logits_BC=logits_BC, dense_BH=dense_BH)
        if counts is not None:
            device = logits_BC.device
            summed = nn.functional.cross_entropy(
                logits_BC + self.shift_C.to(device),
                batch.label_B.to(device),
                weight=self.weight_C.to(device),
                reduction="sum",
                ignore_index=-1,
            )
            result.losses[TASK] = result.loss = summed / max(counts[TASK], 1)
        return result


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
