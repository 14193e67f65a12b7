"""What M5 models have of Hugging Face's: strict loading, weights by name, product vectors from raw batches."""

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from m5ds.batch import Batch
from m5ds.model.configuration import M5Config
from m5ds.model.objectives.total import Objectives
from m5ds.model.summaries import OPERATIONS, pool


class M5PreTrainedModel(PreTrainedModel):
    """Base of M5ForPretraining: all of it that is not the forward pass."""

    config_class = M5Config
    base_model_prefix = ""
    supports_gradient_checkpointing = False
    config: M5Config
    projections: nn.ModuleDict
    objectives: Objectives
    frozen = False
    """True: training mode is for the objectives alone; the states stay those of evaluation."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `initialize` fills every parameter by name, which also works on ZeRO-3's shards."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`, but a missing, unexpected or mismatched key is a ValueError."""
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model, info = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(problem):
                where = f"{pretrained_model_name_or_path}: {problem.replace('_', ' ')}"
                listed = ", ".join(sorted(str(key) for key in info[problem]))
                raise ValueError(f"{where}: {listed}; the files belong to another model")
        return (model, info) if wants_info else model

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: else a loaded model would save a copy of this file instead of naming the package."""

    def train(self, mode: bool = True) -> Self:
        """As any module's, but for a model that is `frozen`."""
        super().train(mode and not self.frozen)
        if self.frozen:
            self.objectives.train(mode)
        return self

    @torch.no_grad()
    def embed(
        self,
        batch: Batch,
        *,
        states: Literal["fused", "contrastive"] = "fused",
        operation: Literal["concat", "mean", "sum"] = "mean",
        normalized: bool = True,
    ) -> Tensor:
        """[B, W] fp32: one vector a product, as tools/embed.py writes them; zero where it has no modality.

        `states`: the summaries after fusion, or their projections before it, by which one modality finds another.
        `operation`: over the present modalities; `concat` keeps all M side by side. The batch is moved to the model's
        device. ValueError in training mode (dropout would make the vectors random) and for an unknown choice.
        """
        if self.training:
            raise ValueError("embed: the model is in training mode; call model.eval() first")
        if states not in ("fused", "contrastive") or operation not in OPERATIONS:
            raise ValueError(
                f"embed: states {states!r} and operation {operation!r}; states are fused or contrastive, operations"
                f" {', '.join(OPERATIONS)}"
            )
        if states == "contrastive" and not len(self.projections):
            raise ValueError("embed: states contrastive need a model with a contrastive loss; use fused")
        output = self(batch.to(self.device), masked=False)
        states_BMD = output.fused_BMD if states == "fused" else output.unimodal_BMD
        return pool(states_BMD, output.present_BM, operation, normalized)

    def no_weight_decay_names(self) -> set[str]:
        """Parameters that take no weight decay: biases, norms, single vectors ([CLS], mask, ...), logit scale,
        harmony.
        """
        names = set()
        for name, parameter in self.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            if len(shape) <= 1 or name.startswith(("harmony.", "absent.")):
                names.add(name)
        return names
