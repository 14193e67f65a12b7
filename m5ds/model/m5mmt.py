"""M5-MMT and every system that is a list of its blocks: rows are embedded, encoded by modality and fused.

What is minimised is the objectives' concern (m5ds/model/objectives): the model hands them its states and knows none of
them. B products, M modalities, T packed rows, D hidden width, R the projections' width. One forward makes the same
sequence of module calls whatever the batch holds (DESIGN 3.6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m5ds.batch import Batch
from m5ds.config import check_summaries
from m5ds.kernels.common.layout import PackedLayout
from m5ds.model import fusion
from m5ds.model.absent import AbsentTokens, impute_zeros, with_absent_rows
from m5ds.model.blocks import PackedBlock
from m5ds.model.configuration import M5Config
from m5ds.model.dropout import EMBEDDING, drop_rows
from m5ds.model.embeddings import Embeddings
from m5ds.model.hugging_face import M5PreTrainedModel
from m5ds.model.initialization import initialize
from m5ds.model.objectives import total
from m5ds.model.objectives.base import States
from m5ds.model.objectives.harmony import Harmony
from m5ds.model.objectives.pool import Pool
from m5ds.model.objectives.total import Objectives
from m5ds.model.summaries import Projection, RowIndex, scatter_products, summarize


@dataclass(kw_only=True)
class M5Output:
    """What a forward returns. Where a product lacks a modality its vectors are zero: all in an empty product."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    """Scalars by the name of the objective's term, fp32: local sum / global count. Empty without `counts`."""
    loss: Tensor | None = None
    """What to minimise: the losses under their weights and the harmony. None without `counts`."""
    measures: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Further local sums of each objective, such as correct answers. Empty without `measure`."""
    unimodal_BMD: Tensor
    """[B, M, R] fp32: projected summaries before fusion, L2-normalised; zero for a modality that is not projected."""
    fused_BMD: Tensor
    """[B, M, D] in the model's dtype: summaries after fusion, LayerNorm without weights over the last blocks' output.
    """
    present_BM: Tensor
    """bool on the rows' device: True = present. A product without any is empty, and its embedding is marked so by
    this.
    """
    layout: PackedLayout
    """Layout of the fused rows, on their device."""
    fused_TD: Tensor
    """All rows after fusion."""


class M5ForPretraining(M5PreTrainedModel):
    """The model with the objectives that its configuration declares."""

    def __init__(self, config: M5Config) -> None:
        super().__init__(config)
        spec = config.spec
        check_summaries(spec)
        names, dim, eps = spec.modality_names, spec.hidden_size, spec.layer_norm_eps
        self.spec, self.names = spec, names
        self.kinds = tuple(spec.modalities[name].cls for name in names)
        self.embeddings = Embeddings(config)
        layers = fusion.layers(spec)
        self.num_unimodal = fusion.num_unimodal(layers)
        self.last_is_pre_norm = bool(layers) and layers[-1].pre_norm
        rates = {"dropout": spec.dropout, "attention_dropout": spec.attention_dropout}
        self.blocks = nn.ModuleDict({layer.name: PackedBlock(layer, names, dim, eps=eps, **rates) for layer in layers})
        if spec.absent == "token":
            self.absent = AbsentTokens(len(names), dim)
        objectives = Objectives.of(config, self.embeddings.token_table)
        projected = [name for name in names if name in objectives.projected]
        self.projections = nn.ModuleDict({name: Projection(dim, spec.projection_dim, eps) for name in projected})
        self.objectives = objectives
        self.harmonised = total.harmonised(config, self.objectives)
        self.harmony = Harmony(spec.harmony, len(names), [term for _, term in self.harmonised])
        self._tied_weights_keys = {
            f"objectives.{name}.{own}": other
            for name, objective in self.objectives.chosen()
            for own, other in objective.tied_weights().items()
        }
        self.post_init()
        initialize(self, config.initializer_seed, spec.initializer_range)

    def count_targets(self, batch: Batch, seed: int, chosen: Sequence[str] | None = None) -> dict[str, int]:
        """Targets of every loss in this micro-batch, by name, and `products`: what `forward` divides by once it is
        summed over ranks and accumulation. `chosen` objectives only; None: all.
        """
        return self.objectives.count_targets(batch, seed, chosen)

    def forward(
        self,
        batch: Batch,
        *,
        counts: Mapping[str, int] | None = None,
        seed: int = 0,
        masked: bool = True,
        chosen: Sequence[str] | None = None,
        pools: Mapping[str, Pool] | None = None,
        measure: bool = False,
    ) -> M5Output:
        """One micro-batch, its rows on the model's device.

        `counts` (`count_targets`, summed over ranks and accumulation): the divisor of every loss; None gives states
        only. `seed` is the run's. `masked` False: nothing is masked, and objectives that need it are left out.
        `chosen`: the objectives to evaluate; None: all. `pools`, by objective: how it sees the products of other ranks
        and micro-batches; None: this batch is all there is. `measure`: what objectives measure besides their losses.
        ValueError for a batch of other modalities.
        """
        if tuple(batch.modalities) != self.names:
            raise ValueError(
                f"batch has modalities {', '.join(batch.modalities)}; the model has {', '.join(self.names)}"
            )
        if self.spec.absent == "zeros":
            batch = impute_zeros(batch, self.spec, self.config.pad_id)
        device = next(iter(batch.modalities.values())).position_N.device
        layout, index = self._index(self._layout(batch), device)
        x_TD, masks = self.embeddings(batch, layout, seed, masked)
        if self.training:
            x_TD = drop_rows(x_TD, layout, 0, self.spec.dropout, seed, 0, EMBEDDING)
        blocks = list(self.blocks.values())
        x_TD = self._run(blocks[: self.num_unimodal], x_TD, layout, seed)
        unimodal_BMR = self._unimodal(x_TD, layout, index, batch.num_products)
        if self.spec.absent == "token":
            cpu_layout, source_T, num_absent = with_absent_rows(index.layout)
            layout, index = self._index(cpu_layout, device)
            x_TD = self.absent(x_TD, layout, source_T.to(device), num_absent)
        x_TD = self._run(blocks[self.num_unimodal :], x_TD, layout, seed)
        fused_BMD = self._fused(x_TD, layout, index, batch.num_products)
        output = M5Output(
            unimodal_BMD=unimodal_BMR,
            fused_BMD=fused_BMD,
            present_BM=layout.present_BM,
            layout=layout,
            fused_TD=x_TD,
        )
        if counts is not None:
            states = States(
                unimodal_BMR, fused_BMD, x_TD, layout.present_BM, masks if masked else None, layout, index, batch, seed
            )
            able = [name for name, one in self.objectives.chosen(chosen) if masked or not one.masked_input]
            output.losses, output.loss = total.weighted_total(
                self.objectives, self.harmony, self.harmonised, states, counts, pools, able
            )
            if measure:
                output.measures = {name: self.objectives[name].measures(states) for name in able}
        return output

    def _layout(self, batch: Batch) -> PackedLayout:
        lengths = []
        for kind, rows in zip(self.kinds, batch.modalities.values(), strict=True):
            lengths.append(rows.length_B + (rows.length_B > 0) if kind == "learned" else rows.length_B)
        return PackedLayout.build(torch.stack(lengths, 1), batch.present_BM, batch.product_B, batch.draw_B)

    def _index(self, layout: PackedLayout, device: torch.device) -> tuple[PackedLayout, RowIndex]:
        """The CPU layout on the device, and the host-made index of its rows."""
        index = RowIndex(layout, tuple(kind == "learned" for kind in self.kinds), device)
        return (layout if device.type == "cpu" else layout.to(device)), index

    def _run(self, blocks: list[nn.Module], x_TD: Tensor, layout: PackedLayout, seed: int) -> Tensor:
        recompute = self.config.activation_checkpointing and self.training and torch.is_grad_enabled()
        for block in blocks:
            if recompute:
                # Dropout bits are keyed, so there is no random state to preserve.
                x_TD = checkpoint(block, x_TD, layout, seed, use_reentrant=False, preserve_rng_state=False)
            else:
                x_TD = block(x_TD, layout, seed)
        return x_TD

    def _unimodal(self, x_TD: Tensor, layout: PackedLayout, index: RowIndex, num_products: int) -> Tensor:
        summaries = summarize(x_TD, layout, index, self.kinds)
        projected = [
            self.projections[name](summary_nD)
            if name in self.projections
            else torch.zeros(summary_nD.shape[0], self.spec.projection_dim, device=x_TD.device)
            for name, summary_nD in zip(self.names, summaries, strict=True)
        ]
        return scatter_products(projected, index, num_products)

    def _fused(self, x_TD: Tensor, layout: PackedLayout, index: RowIndex, num_products: int) -> Tensor:
        summaries = summarize(x_TD, layout, index, self.kinds)
        if self.last_is_pre_norm:
            # A pre-norm residual stream has no scale of its own.
            shape = (self.spec.hidden_size,)
            summaries = [nn.functional.layer_norm(value, shape, eps=self.spec.layer_norm_eps) for value in summaries]
        return scatter_products(summaries, index, num_products)
