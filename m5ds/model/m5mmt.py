"""M5-MMT and every system that is a list of its blocks: embeddings, unimodal encoders, fusion, masked and contrastive
losses.

B products, M modalities, N content rows of one modality, T packed rows, D hidden width, R the projection's width, P
pairs, K masked rows. One forward makes the same sequence of module calls whatever the batch holds (DESIGN 3.6).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from m5ds import modality
from m5ds.batch import Batch
from m5ds.config import check_summaries
from m5ds.kernels.common.layout import PackedLayout
from m5ds.model import fusion
from m5ds.model.absent import AbsentTokens, impute_zeros, with_absent_rows
from m5ds.model.blocks import PackedBlock
from m5ds.model.configuration import M5Config
from m5ds.model.dropout import EMBEDDING, drop_rows
from m5ds.model.embeddings import Embeddings
from m5ds.model.initialization import initialize
from m5ds.model.masking import PRODUCTS
from m5ds.model.objectives import masked_heads as heads
from m5ds.model.objectives.contrastive import Contrastive, Gather, gather_locally
from m5ds.model.objectives.harmony import Harmony, HarmonyWeights
from m5ds.model.objectives.pairs import contrastive_pairs, pair_name
from m5ds.model.objectives.pool import ContrastivePool
from m5ds.model.pooling import OPERATIONS, pool
from m5ds.model.summaries import Projection, RowIndex, scatter_products, summarize


@dataclass(kw_only=True)
class M5Output:
    """What a forward returns. Where a product lacks a modality its vectors are zero: all in an empty product."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    """Scalars by task name and `itc/<a>-<b>`, fp32: local sum / global count. Empty without `counts`."""
    loss: Tensor | None = None
    """What to minimise: the losses under their weights and the harmony. None without `counts`."""
    unimodal_BMD: Tensor
    """[B, M, R] fp32: projected summaries before fusion, L2-normalised; zero for a modality that no pair contrasts."""
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


class M5ForPretraining(PreTrainedModel):
    """The model with its pretraining heads and objectives."""

    config_class = M5Config
    base_model_prefix = ""
    supports_gradient_checkpointing = False

    def __init__(self, config: M5Config) -> None:
        super().__init__(config)
        spec = config.spec
        check_summaries(spec)
        names, dim, eps = spec.modality_names, spec.hidden_size, spec.layer_norm_eps
        self.spec, self.names = spec, names
        self.kinds = tuple(spec.modalities[name].cls for name in names)
        self.tasks = {name: modality.get(name).task for name in names if spec.modalities[name].mask_ratio > 0.0}
        self.pair_names = contrastive_pairs(spec)
        pairs = tuple((names.index(first), names.index(second)) for first, second in self.pair_names)

        self.embeddings = Embeddings(config)
        layers = fusion.layers(spec)
        self.num_unimodal = fusion.num_unimodal(layers)
        self.last_is_pre_norm = bool(layers) and layers[-1].pre_norm
        self.blocks = nn.ModuleDict(
            {
                layer.name: PackedBlock(
                    layer, names, dim, eps=eps, dropout=spec.dropout, attention_dropout=spec.attention_dropout
                )
                for layer in layers
            }
        )
        if spec.absent == "token":
            self.absent = AbsentTokens(len(names), dim)
        self.projections = nn.ModuleDict(
            {
                name: Projection(dim, spec.contrastive.projection_dim, eps)
                for name in names
                if any(name in pair for pair in self.pair_names)
            }
        )
        self.heads = nn.ModuleDict(
            {
                name: heads.build(
                    heads.HeadContext(
                        modality=name,
                        config=spec.modalities[name],
                        hidden_size=dim,
                        layer_norm_eps=eps,
                        token_table=self.embeddings.token_table(name),
                    )
                )
                for name in self.tasks
            }
        )
        if pairs:
            self.contrastive = Contrastive(spec.contrastive, pairs)
        self.harmony = Harmony(spec.harmony, len(names), pairs)
        self._tied_weights_keys = {
            f"heads.{name}.decoder_weight": f"embeddings.{name}_token"
            for name, head in self.heads.items()
            if hasattr(head, "decoder_weight")
        }
        self.post_init()
        initialize(self, config.initializer_seed, spec.initializer_range)

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
        if states == "contrastive" and not self.pair_names:
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

    def forward(
        self,
        batch: Batch,
        *,
        counts: dict[str, int] | None = None,
        seed: int = 0,
        masked: bool = True,
        gather: Gather | ContrastivePool | None = None,
    ) -> M5Output:
        """One micro-batch, its rows on the model's device.

        `counts` (m5ds.model.masking.count_targets, summed over ranks and accumulation): the divisor of every loss; None
        gives features only. `seed` is the run's. `masked` False: nothing is masked and the masked losses are left out.
        `gather` collects contrastive features of all ranks (docs/architecture.md), or is the ContrastivePool of a step
        with accumulation. ValueError for a batch of other modalities.
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
            self._add_losses(output, batch, index, masks if masked else None, counts, gather or gather_locally)
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
        width = self.spec.contrastive.projection_dim
        projected = [
            self.projections[name](summary_nD)
            if name in self.projections
            else torch.zeros(summary_nD.shape[0], width, device=x_TD.device)
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

    def _add_losses(
        self,
        output: M5Output,
        batch: Batch,
        index: RowIndex,
        masks: list[Tensor] | None,
        counts: dict[str, int],
        gather: Gather | ContrastivePool,
    ) -> None:
        tasks = self.tasks if masks is not None else {}
        pair_names = [pair_name(first, second) for first, second in self.pair_names]
        wanted = [*tasks.values(), *pair_names, PRODUCTS]
        if missing := [name for name in wanted if name not in counts]:
            raise ValueError(f"counts lacks {', '.join(missing)}; make it with m5ds.model.masking.count_targets")
        active = [name in tasks and counts[tasks[name]] > 0 for name in self.names]
        active += [counts[name] > 0 for name in pair_names]
        weights: HarmonyWeights = self.harmony(output.fused_BMD, output.present_BM, tuple(active))
        total = torch.zeros((), device=output.unimodal_BMD.device)
        features_only = isinstance(gather, ContrastivePool) and gather.collecting
        for m, name in enumerate(self.names):
            if name not in tasks or features_only:
                continue
            assert masks is not None
            summed = self._masked_loss(m, name, masks[m], output, batch, index, weights)
            loss = output.losses[tasks[name]] = summed / max(counts[tasks[name]], 1)
            scale = self.spec.modalities[name].loss_weight
            total = total + loss * (scale if weights.task_scale_M is None else scale * weights.task_scale_M[m])
        if pair_names:
            count_P = torch.tensor([float(max(counts[name], 1)) for name in pair_names], device=total.device)
            factor_P = torch.full_like(count_P, self.spec.contrastive.weight)
            if weights.pair_scale_P is not None:
                factor_P = factor_P * weights.pair_scale_P
            summed_P = self.contrastive(
                output.unimodal_BMD,
                output.present_BM,
                gather,
                weights.pair_logit_BP,
                weights.pair_loss_BP,
                (factor_P / count_P).detach(),
            )
            loss_P = summed_P / count_P
            output.losses.update(zip(pair_names, loss_P.unbind(), strict=True))
            total = total + (loss_P * factor_P).sum()
        if weights.penalty is not None:
            # Once per optimizer step: every micro-batch bears its products' share.
            total = total + weights.penalty * (batch.num_products / max(counts[PRODUCTS], 1))
        output.loss = total

    def _masked_loss(
        self,
        m: int,
        name: str,
        masked_N: Tensor,
        output: M5Output,
        batch: Batch,
        index: RowIndex,
        weights: HarmonyWeights,
    ) -> Tensor:
        rows = batch.modalities[name]
        masked_K = masked_N.nonzero()[:, 0]
        packed_K = index.content_rows(m, rows.length_B).index_select(0, masked_K)
        product_K = output.layout.row_product_T.index_select(0, packed_K)
        chosen = [
            None if weight_BM is None else weight_BM[:, m].index_select(0, product_K)
            for weight_BM in (weights.task_loss_BM, weights.task_logit_BM)
        ]
        return self.heads[name](output.fused_TD.index_select(0, packed_K), rows, masked_K, *chosen)
