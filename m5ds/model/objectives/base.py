"""What an objective is: one loss, or a family of losses, in one file (DESIGN 3.4).

An objective gives its terms (names and weights of its losses), counts their targets before the model runs, and turns
the model's states into local sums. The model, the step, validation, harmony and the report go through the configured
objectives in order and know none of them by name. CONTRIBUTING.md shows how to add one.

B products, M modalities, N content rows of one modality, T packed rows, D hidden width, R the projection's width, K
terms of an objective.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from m5ds.batch import Batch
from m5ds.kernels.common.layout import PackedLayout
from m5ds.model.configuration import M5Config
from m5ds.model.objectives.pool import GlobalLoss, Pool
from m5ds.model.summaries import RowIndex


@dataclass(frozen=True, kw_only=True)
class Term:
    """One scalar loss."""

    name: str
    """Its name in counts, metrics and tables; `family/member` where a table should show the family's mean."""
    modalities: tuple[int, ...] = ()
    """Places in the model of the modalities that it is about: (m,) or (i, j), i < j. Harmony weighs such terms."""
    weight: float = 1.0
    """Its factor in the total."""

    @property
    def family(self) -> str:
        """What stands before the slash of its name."""
        return self.name.partition("/")[0]


class States(NamedTuple):
    """What the model hands to its objectives. A tuple, which ZeRO-3's hooks can look into."""

    unimodal_BMR: Tensor
    """Projected summaries before fusion, L2-normalised, fp32; zero where a product lacks the modality."""
    fused_BMD: Tensor
    """Summaries after fusion, zero where a product lacks the modality."""
    fused_TD: Tensor
    """All rows after fusion."""
    present_BM: Tensor
    """bool on the rows' device: True = present."""
    masks: list[Tensor] | None
    """By modality bool [N] over content rows: True = masked. None where nothing was."""
    layout: PackedLayout
    """Of the fused rows."""
    row_index: RowIndex
    """Where segments and content rows lie."""
    batch: Batch
    seed: int
    """The run's."""

    def groups(self) -> Tensor:
        """int64 [B] on the rows' device: the products' groups; a product that names none is alone in its."""
        batch = self.batch
        return (batch.product_B if batch.group_B is None else batch.group_B).to(self.fused_BMD.device)


class TermWeights(NamedTuple):
    """What harmony makes of an objective's K terms, None where it is 1. fp32."""

    loss_BK: Tensor | None = None
    """Of each product's part of the loss, inside the sum."""
    logit_BK: Tensor | None = None
    """Of each product's logits (or predictions)."""
    scale_K: Tensor | None = None
    """Of the whole loss, in the total only: the reported loss stays as it is."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext:
    """What an objective may need to build itself."""

    name: str
    """Its key under `model.objectives`."""
    model: M5Config
    token_table: Callable[[str], nn.Parameter | None]
    """The token table [V, D] of a modality; None where its rows are not tokens."""


class Objective(nn.Module):
    """Base of all objectives; `register` makes one known. Subclasses set `config_class` and `terms`, and override
    `count_targets` and `forward`; the rest where it differs.
    """

    kind: ClassVar[str]
    """The name that it is registered under."""
    config_class: ClassVar[type]
    """A strict pydantic dataclass: what the YAML may say under `model.objectives.NAME`, apart from `kind`."""
    masked_input: ClassVar[bool] = False
    """True: needs masked rows, in evaluation too. In training all objectives share one forward, masked for any."""
    initial_name: ClassVar[str | None] = None
    """What keys the initial weights in place of the module's path (m5ds.model.initialization)."""
    terms: tuple[Term, ...]
    global_loss: GlobalLoss | None = None
    """Set where products are compared with the whole global batch: the loss over it, which a pool evaluates."""

    @classmethod
    def wanted(cls, name: str, config: Any, model: M5Config) -> bool:
        """False where the model has nothing that the objective could work on."""
        return True

    @property
    def projected(self) -> set[str]:
        """Modalities whose unimodal summaries the objective reads projected (`States.unimodal_BMR`)."""
        return set()

    def count_targets(self, batch: Batch, seed: int) -> dict[str, int]:
        """Targets of each term in this micro-batch. Summed over ranks and accumulation they divide the sums."""
        raise NotImplementedError

    def forward(self, states: States, weights: TermWeights, coefficient_K: Tensor, pool: Pool | None) -> Tensor:
        """Local sums of the terms, fp32 [K]. Every rank calls it, whatever its batch holds.

        `coefficient_K` is what the total multiplies each sum with. `pool` is given where `global_loss` is set.
        """
        raise NotImplementedError

    def measures(self, states: States) -> dict[str, Tensor]:
        """Further local sums that validation divides by the targets of the first term, such as correct answers."""
        return {}

    def logged_parameters(self) -> dict[str, tuple[nn.Parameter, Callable[[Tensor], Tensor]]]:
        """Own parameters that the monitor shows, by the scalar's name, and how the fp32 value becomes the scalar."""
        return {}

    def tied_weights(self) -> dict[str, str]:
        """Own parameters that are the model's, by name: the model's name of each."""
        return {}


_KINDS: dict[str, type[Objective]] = {}


def register(kind: str) -> Callable[[type[Objective]], type[Objective]]:
    """Make an objective known to `model.objectives.NAME.kind`."""

    def add(objective: type[Objective]) -> type[Objective]:
        objective.kind = kind
        _KINDS[kind] = objective
        return objective

    return add


def kinds() -> tuple[str, ...]:
    """The kinds that are known."""
    return tuple(sorted(_KINDS))


def kind_of(kind: str) -> type[Objective]:
    """The objective of that kind. `KeyError` for an unknown one."""
    return _KINDS[kind]
