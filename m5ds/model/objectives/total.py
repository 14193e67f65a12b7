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
from m5ds.model.objectives.pool import Gathered, Pool
from m5ds.model.objectives.specs import specs

PRODUCTS = "products"
"""The count of products, by which a term is divided that belongs to the step as a whole (harmony's penalty)."""


def build(config: M5Config, token_table: Callable[[str], nn.Parameter | None]) -> dict[str, Objective]:
    """The objectives that the configuration declares, by name. ValueError for one that the model cannot serve."""
    return {
        name: objective(spec, ObjectiveContext(name=name, model=config, token_table=token_table))
        for name, (objective, spec) in specs(config.spec.objectives).items()
        if objective.wanted(name, spec, config)
    }


def projected_modalities(config: M5Config) -> tuple[str, ...]:
    """Modalities whose unimodal summaries some objective reads projected, in the model's order."""
    found = {
        modality_name
        for name, (objective, spec) in specs(config.spec.objectives).items()
        for modality_name in objective.projected(name, spec, config)
    }
    return tuple(one for one in config.spec.modality_names if one in found)


def harmonised(config: M5Config, objectives: Mapping[str, Objective]) -> list[tuple[str, Term]]:
    """The terms that harmony weighs, each with its objective's name. ValueError for an objective that is not there."""
    wanted = config.spec.harmony.objectives
    if missing := set(wanted or ()) - set(config.spec.objectives):
        raise ValueError(
            f"model.harmony.objectives names {', '.join(sorted(missing))}; the model has {', '.join(objectives)}"
        )
    return [
        (name, term)
        for name, objective in objectives.items()
        if wanted is None or name in wanted
        for term in objective.terms
        if term.modalities
    ]


def count_targets(objectives: Mapping[str, Objective], batch: Batch, seed: int) -> dict[str, int]:
    """Targets of every loss in this micro-batch, by the term's name, and `products`."""
    counts = {PRODUCTS: batch.num_products}
    for objective in objectives.values():
        counts |= objective.count_targets(batch, seed)
    return counts


def weighted_total(
    objectives: Mapping[str, Objective],
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
    wanted = [*(term.name for name in chosen for term in objectives[name].terms), PRODUCTS]
    if missing := [name for name in wanted if name not in counts]:
        raise ValueError(f"counts lacks {', '.join(missing)}; make it with the model's count_targets")
    # By what the step holds, not by what this forward evaluates: both passes of a step must weigh alike.
    able = {name for name in objectives if states.masks is not None or not objectives[name].masked_input}
    active_K = tuple(name in able and counts.get(term.name, 0) > 0 for name, term in weighed)
    is_weighed = any(name in chosen for name, _ in weighed)
    weights = harmony(states.fused_BMD, states.present_BM, active_K) if is_weighed else HarmonyWeights()
    device = states.fused_BMD.device
    losses: dict[str, Tensor] = {}
    total = torch.zeros((), device=device)
    for name in chosen:
        objective = objectives[name]
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
