"""Product embeddings from a model's output.

Shape letters: B products, W width of the product's vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.batch import Batch
from m5ds.config import ConfigError
from m5ds.downstream.embed.embeddings import OPERATIONS, STATES, check_modalities
from m5ds.downstream.embed.presence import with_modalities
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.classification import ClassifierHead
from m5ds.model.summaries import pool


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureOptions:
    """Which vector stands for a product. The defaults are for search; `official()` is the released code's choice."""

    modalities: tuple[str, ...]
    """Subset shown to the model, in table order; the others are absent."""
    states: str = "fused"
    """`fused`: the modalities' summaries after fusion. `contrastive`: their projections before it, which training
    pulled together, so that text can find images. `dense`: the finetuned classifier's layer over the fused summaries,
    the paper's "finetune" features; it knows one operation, `concat`."""
    operation: str = "mean"
    """`concat` of all the model's modalities (zeros where one is absent), `mean` or `sum` over the present ones."""
    normalized: bool = True
    """L2-normalise the product's vector."""

    def __post_init__(self) -> None:
        if self.states not in STATES:
            raise ConfigError(f"states must be one of {', '.join(STATES)}, got {self.states!r}")
        if self.operation not in OPERATIONS:
            raise ConfigError(f"operation must be one of {', '.join(OPERATIONS)}, got {self.operation!r}")
        if self.states == "dense" and self.operation != "concat":
            raise ConfigError(f"states dense knows one operation, concat, got {self.operation!r}")

    @classmethod
    def official(cls, modalities: tuple[str, ...]) -> "FeatureOptions":
        """Sum of the fused summaries, not normalised (PAPER.md section 1.3, "features for retrieval")."""
        return cls(modalities=modalities, operation="sum", normalized=False)


@torch.no_grad()
def encode(
    model: M5ForPretraining, batch: Batch, options: FeatureOptions, head: ClassifierHead | None = None
) -> Tensor:
    """[B, W] fp32 on the CPU: the products' vectors from the subset's modalities. Nothing is masked, no dropout.

    `ValueError`: a modality that the model lacks, `dense` states without a classifier's head, `contrastive` ones of a
    model that was trained without the loss.
    """
    check_modalities(options.modalities, tuple(batch.modalities))
    check_states(model, options, head)
    assert not model.training, "call model.eval() first: dropout would make the embedding random"
    output = model(with_modalities(batch, options.modalities), masked=False)
    if options.states == "dense":
        assert head is not None
        dense_BH = head.dense(output.fused_BMD.flatten(1).float())[:, None]
        return pool(dense_BH, output.present_BM.any(1, keepdim=True), "sum", options.normalized).cpu()
    states_BMD = output.fused_BMD if options.states == "fused" else output.unimodal_BMD
    return pool(states_BMD, output.present_BM, options.operation, options.normalized).cpu()


def check_states(model: M5ForPretraining, options: FeatureOptions, head: ClassifierHead | None) -> None:
    """`ValueError` where the model cannot give the wanted states."""
    if options.states == "dense" and head is None:
        raise ValueError("states dense need a checkpoint of tools/finetune.py classification; use fused")
    if options.states == "contrastive" and not len(model.projections):
        raise ValueError("states contrastive need a model with a contrastive loss; use fused")


def vector_width(model: M5ForPretraining, options: FeatureOptions, head: ClassifierHead | None = None) -> int:
    """W of `encode`'s result."""
    if options.states == "dense":
        assert head is not None
        return head.dense.out_features
    spec = model.spec
    width = spec.hidden_size if options.states == "fused" else spec.projection_dim
    return width * (len(spec.modality_names) if options.operation == "concat" else 1)
