"""Objectives over pairs of modalities: which pairs, what their losses are called, and how many products have both."""

import itertools
from collections.abc import Sequence
from typing import ClassVar, Protocol

from m5ds.batch import Batch
from m5ds.config import ModelConfig
from m5ds.model.configuration import M5Config
from m5ds.model.objectives.base import Objective, ObjectiveContext, Term

Pairs = tuple[tuple[int, int], ...]
"""Places in the model of each pair's modalities."""


class PairConfig(Protocol):
    """What the section of an objective over pairs has."""

    @property
    def pairs(self) -> str | Sequence[tuple[str, str]]:
        """`chain`, `all`, or pairs of names."""

    @property
    def weight(self) -> float:
        """Factor of every pair's loss."""


class PairObjective(Objective):
    """Base of objectives that compare the projected unimodal summaries of two modalities; a term each pair."""

    family: ClassVar[str]
    """Ahead of the slash in the terms' names, where the objective has the name of its kind; else its name is."""

    def __init__(self, config: PairConfig, context: ObjectiveContext) -> None:
        super().__init__()
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

    @classmethod
    def projected(cls, name: str, config: PairConfig, model: M5Config) -> tuple[str, ...]:
        return tuple(one for pair in chosen_pairs(config.pairs, model.spec, name) for one in pair)

    def count_targets(self, batch: Batch, seed: int) -> dict[str, int]:
        """Products that have both modalities of each pair."""
        present_MB = batch.present_BM.t()
        both = [present_MB[i] & present_MB[j] for i, j in self.pairs]
        return {term.name: int(both_B.sum()) for term, both_B in zip(self.terms, both, strict=True)}


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
