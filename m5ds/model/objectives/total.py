"""The configured objectives of a model, in order: built, counted, and summed into what a step minimises (DESIGN 3.4).

B products, M modalities, K terms of one objective.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from m5ds.batch import Batch
from m5ds.model.configuration import M5Config
from m5ds.model.objectives.base import Objective, ObjectiveContext, States, Term, TermWeights
from m5ds.model.objectives.harmony import Harmony, HarmonyWeights
from m5ds.model.objectives.pool import Gathered, GlobalLoss, Pool
from m5ds.model.objectives.specs import specs

PRODUCTS = "products"
"""The count of products, by which a term is divided that belongs to the step as a whole (harmony's penalty)."""


class Objectives(nn.ModuleDict):
    """The objectives that a configuration declares, by name, in order."""

    @classmethod
    def of(cls, config: M5Config, token_table: Callable[[str], nn.Parameter | None]) -> "Objectives":
        """ValueError for an objective that the model cannot serve, and where two have a loss of one name."""
        made = cls(
            {
                name: objective(spec, ObjectiveContext(name=name, model=config, token_table=token_table))
                for name, (objective, spec) in specs(config.spec.objectives).items()
                if objective.wanted(name, spec, config)
            }
        )
        owner: dict[str, str] = {}
        for name, objective in made.chosen():
            for term in objective.terms:
                if owner.setdefault(term.name, name) != name:
                    raise ValueError(
                        f"model.objectives.{name} and {owner[term.name]} both have a loss {term.name}; leave one out"
                    )
        return made

    def __getitem__(self, name: str) -> Objective:
        objective = super().__getitem__(name)
        assert isinstance(objective, Objective)
        return objective

    def chosen(self, names: Sequence[str] | None = None) -> list[tuple[str, Objective]]:
        """The named ones, all for None, in the order given."""
        return [(name, self[name]) for name in (self if names is None else names)]

    @property
    def projected(self) -> set[str]:
        """Modalities whose unimodal summaries some objective reads projected."""
        return {name for _, objective in self.chosen() for name in objective.projected}

    def term_names(self, names: Sequence[str] | None = None) -> list[str]:
        """Names of the losses."""
        return [term.name for _, objective in self.chosen(names) for term in objective.terms]

    def global_losses(self, names: Sequence[str] | None = None) -> dict[str, GlobalLoss]:
        """By objective, the losses that compare products with the whole global batch."""
        return {name: one.global_loss for name, one in self.chosen(names) if one.global_loss is not None}

    def count_targets(self, batch: Batch, seed: int, names: Sequence[str] | None = None) -> dict[str, int]:
        """Targets of every loss in this micro-batch, by the term's name, and `products`."""
        counts = {PRODUCTS: batch.num_products}
        for _, objective in self.chosen(names):
            counts |= objective.count_targets(batch, seed)
        return counts


def harmonised(config: M5Config, objectives: Objectives) -> list[tuple[str, Term]]:
    """The terms that harmony weighs, each with its objective's name. ValueError for an objective that is not there."""
    wanted = config.spec.harmony.objectives
    if missing := set(wanted or ()) - set(config.spec.objectives):
        raise ValueError(
            f"model.harmony.objectives names {', '.join(sorted(missing))}; the model has {', '.join(objectives)}"
        )
    return [
        (name, term)
        for name, objective in objectives.chosen()
        if wanted is None or name in wanted
        for term in objective.terms
        if term.modalities
    ]


def weighted_total(
    objectives: Objectives,
    harmony: Harmony,
    weighed: Sequence[tuple[str, Term]],
    states: States,
    counts: Mapping[str, int],
    pools: Mapping[str, Pool] | None,
    chosen: Sequence[str],
) -> tuple[dict[str, Tensor], Tensor]:
    """(losses by term, each a local sum over its global count; what to minimise). `chosen` objectives take part.

    ValueError where `counts` lacks a term.
    """
    if missing := [name for name in (*objectives.term_names(chosen), PRODUCTS) if name not in counts]:
        raise ValueError(f"counts lacks {', '.join(missing)}; make it with the model's count_targets")
    # By what the step holds, not by what this forward evaluates: both passes of a step must weigh alike.
    able = {name for name, one in objectives.chosen() if states.masks is not None or not one.masked_input}
    active_K = tuple(name in able and counts.get(term.name, 0) > 0 for name, term in weighed)
    is_weighed = any(name in chosen for name, _ in weighed)
    weights = harmony(states.fused_BMD, states.present_BM, active_K) if is_weighed else HarmonyWeights()
    device = states.fused_BMD.device
    losses: dict[str, Tensor] = {}
    total = torch.zeros((), device=device)
    for name, objective in objectives.chosen(chosen):
        own = _own_weights(name, objective, weighed, weights.terms)
        count_K = torch.tensor([float(max(counts[term.name], 1)) for term in objective.terms], device=device)
        factor_K = torch.tensor([term.weight for term in objective.terms], device=device)
        if own.scale_K is not None:
            factor_K = factor_K * own.scale_K
        pool = None
        if objective.global_loss is not None:
            pool = pools[name] if pools and name in pools else Gathered(objective.global_loss, None)
        summed_K = objective(states, own, (factor_K / count_K).detach(), pool)
        loss_K = summed_K / count_K
        losses.update(zip((term.name for term in objective.terms), loss_K.unbind(), strict=True))
        # Family by family: another order of additions would change the last bits.
        sizes = [len(list(family)) for _, family in groupby(term.family for term in objective.terms)]
        for part in (loss_K * factor_K).split(sizes):
            total = total + part.sum()
    if weights.penalty is not None:
        # Once per optimizer step: every micro-batch bears its products' share.
        total = total + weights.penalty * (states.batch.num_products / max(counts[PRODUCTS], 1))
    return losses, total


def _own_weights(
    name: str, objective: Objective, weighed: Sequence[tuple[str, Term]], terms: TermWeights
) -> TermWeights:
    """The columns of one objective's terms, which harmony weighs all or none; 1 where it does not."""
    columns = [k for k, (owner, _) in enumerate(weighed) if owner == name]
    if not columns:
        return TermWeights()
    assert len(columns) == len(objective.terms), f"{name}: some terms have no modality"
    return TermWeights(*(None if value is None else value[..., columns[0] : columns[-1] + 1] for value in terms))
