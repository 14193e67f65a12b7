"""Objectives over pairs of modalities: which pairs, what their losses are called, and how many products have both."""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from m5ds.batch import Batch
from m5ds.config import ModelConfig
from m5ds.model.configuration import M5Config
from m5ds.model.objectives.base import Objective, ObjectiveContext, States, Term, TermWeights
from m5ds.model.objectives.pool import PoolInputs

Pairs = tuple[tuple[int, int], ...]
"""Places in the model of each pair's modalities."""
MAX_LOG_SCALE = math.log(100.0)
"""CLIP's bound: the temperature never falls below 0.01."""


class PairConfig(Protocol):
    """What the section of an objective over pairs has."""

    @property
    def pairs(self) -> str | Sequence[tuple[str, str]]:
        """`chain`, `all`, or pairs of names."""

    @property
    def weight(self) -> float:
        """Factor of every pair's loss."""

    @property
    def positives(self) -> str:
        """`product`, or `group`: whether variants of one product are its negatives."""


class PairObjective(Objective):
    """Base of objectives that compare the projected unimodal summaries of two modalities; a term each pair."""

    family: ClassVar[str]
    """Ahead of the slash in the terms' names, where the objective has the name of its kind; else its name is."""

    def __init__(self, config: PairConfig, context: ObjectiveContext) -> None:
        super().__init__()
        self.name = context.name
        self.by_group = config.positives == "group"
        names = context.model.spec.modality_names
        named = chosen_pairs(config.pairs, context.model.spec, context.name)
        self.pair_names = named
        # Two objectives of one kind must not share the names of their losses.
        family = self.family if context.name == self.kind else context.name
        self.pairs: Pairs = tuple((names.index(first), names.index(second)) for first, second in named)
        self.terms = tuple(
            Term(name=f"{family}/{first}-{second}", modalities=pair, weight=config.weight)
            for (first, second), pair in zip(named, self.pairs, strict=True)
        )

    @classmethod
    def wanted(cls, name: str, config: PairConfig, model: M5Config) -> bool:
        return bool(chosen_pairs(config.pairs, model.spec, name))

    @property
    def projected(self) -> set[str]:
        return {name for pair in self.pair_names for name in pair}

    def count_targets(self, batch: Batch, seed: int) -> dict[str, int]:
        """Products that have both modalities of each pair."""
        present_MB = batch.present_BM.t()
        both = [present_MB[i] & present_MB[j] for i, j in self.pairs]
        return {term.name: int(both_B.sum()) for term, both_B in zip(self.terms, both, strict=True)}

    def pool_inputs(self, states: States, weights: TermWeights, scalars: Tensor) -> PoolInputs:
        """What the loss over the global batch depends on; `scalars` are the objective's own numbers, fp32."""
        return PoolInputs(
            features_BMR=states.unimodal_BMR,
            present_BM=states.present_BM,
            scalars=scalars,
            logit_weight_BK=weights.logit_BK,
            loss_weight_BK=weights.loss_BK,
            group_B=states.groups() if self.by_group else None,
        )


def bounded_scale(log_scale: Tensor) -> Tensor:
    """The logit scale from its logarithm, at most `MAX_LOG_SCALE`."""
    return log_scale.clamp(max=MAX_LOG_SCALE).exp()


def chosen_pairs(
    chosen: str | Sequence[tuple[str, str]], spec: ModelConfig, objective: str
) -> tuple[tuple[str, str], ...]:
    """Pairs of modality names, each in table order: `chain`, `all` or a list. `objective` is its name in the YAML.

    ValueError for a pair that the model cannot contrast.
    """
    names, where = spec.modality_names, f"model.objectives.{objective}.pairs"
    if isinstance(chosen, str):
        summarised = [name for name in names if spec.modalities[name].cls != "none"]
        return tuple(itertools.pairwise(summarised) if chosen == "chain" else itertools.combinations(summarised, 2))
    pairs = []
    for first, second in chosen:
        for name in (first, second):
            if name not in names:
                raise ValueError(f"{where} names {name!r}; the model has {', '.join(names)}")
            if spec.modalities[name].cls == "none":
                raise ValueError(f"{where} names {name!r}, which has no summary (cls: none)")
        if first == second:
            raise ValueError(f"{where} has {first!r} with itself")
        pairs.append(tuple(sorted((first, second), key=names.index)))
    if len(set(pairs)) != len(pairs):
        raise ValueError(f"{where} repeats a pair: {list(chosen)}")
    return tuple((first, second) for first, second in pairs)
