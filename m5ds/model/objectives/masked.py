"""The masked objective: every modality's masked rows are predicted from the fused states (paper section 3.2: MRP, MLM,
MEM, MFP, MAM; DESIGN 3.4).

B products, N content rows of one modality, K masked rows of one modality, T packed rows, D hidden width.
"""

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from m5ds import modality
from m5ds.batch import Batch
from m5ds.inputs import STRICT
from m5ds.model.configuration import M5Config
from m5ds.model.masking import draw_masks
from m5ds.model.objectives import heads
from m5ds.model.objectives.base import Objective, ObjectiveContext, States, Term, TermWeights, register
from m5ds.model.objectives.pool import Pool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MaskedConfig:
    """What is masked and by which head it is predicted is said by each modality (`mask_ratio`, `head`, ...)."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of all masked losses, beside each modality's `loss_weight`."""


@register("masked")
class Masked(Objective):
    """One head a modality that has anything masked; its loss has the name of the modality's task."""

    config_class = MaskedConfig
    masked_input = True
    initial_name = ""

    def __init__(self, config: MaskedConfig, context: ObjectiveContext) -> None:
        super().__init__()
        spec = context.model.spec
        self.model_config = context.model
        self.places = [m for m, name in enumerate(spec.modality_names) if spec.modalities[name].mask_ratio > 0.0]
        self.names = [spec.modality_names[m] for m in self.places]
        self.terms = tuple(
            Term(
                name=modality.get(name).task, modalities=(m,), weight=config.weight * spec.modalities[name].loss_weight
            )
            for m, name in zip(self.places, self.names, strict=True)
        )
        self.heads = nn.ModuleDict(
            {
                name: heads.build(
                    heads.HeadContext(
                        modality=name,
                        config=spec.modalities[name],
                        hidden_size=spec.hidden_size,
                        layer_norm_eps=spec.layer_norm_eps,
                        token_table=context.token_table(name),
                    )
                )
                for name in self.names
            }
        )

    @classmethod
    def wanted(cls, name: str, config: MaskedConfig, model: M5Config) -> bool:
        return any(settings.mask_ratio > 0.0 for settings in model.spec.modalities.values())

    def count_targets(self, batch: Batch, seed: int) -> dict[str, int]:
        """Masked rows of each task."""
        masks = draw_masks(batch, self.model_config, seed)
        return {term.name: int(masks[name].sum()) for term, name in zip(self.terms, self.names, strict=True)}

    def forward(self, states: States, weights: TermWeights, coefficient_K: Tensor, pool: Pool | None) -> Tensor:
        assert states.masks is not None, "the masked objective needs masked rows"
        return torch.stack([self._sum(k, states, weights) for k in range(len(self.terms))])

    def _sum(self, k: int, states: States, weights: TermWeights) -> Tensor:
        """The local sum of one modality's head over its masked rows."""
        m, name = self.places[k], self.names[k]
        assert states.masks is not None
        rows = states.batch.modalities[name]
        (masked_K,) = states.masks[m].nonzero(as_tuple=True)
        packed_K = states.row_index.content_rows(m, rows.length_B).index_select(0, masked_K)
        product_K = states.layout.row_product_T.index_select(0, packed_K)
        chosen = [
            None if weight_BK is None else weight_BK[:, k].index_select(0, product_K)
            for weight_BK in (weights.loss_BK, weights.logit_BK)
        ]
        return self.heads[name](states.fused_TD.index_select(0, packed_K), rows, masked_K, *chosen)

    def tied_weights(self) -> dict[str, str]:
        """A vocabulary head's decoder is the modality's token table."""
        return {
            f"heads.{name}.decoder_weight": f"embeddings.{name}_token"
            for name, head in self.heads.items()
            if hasattr(head, "decoder_weight")
        }
