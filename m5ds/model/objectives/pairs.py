"""Which modality pairs are contrasted, what their losses are called, and how many products have both."""

import itertools
from collections.abc import Sequence

from m5ds.batch import Batch
from m5ds.config import ModelConfig
from m5ds.model.objectives.base import Term

Pairs = tuple[tuple[int, int], ...]
"""Places in the model of each pair's modalities."""


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


def pair_name(first: str, second: str) -> str:
    """The name of the pair's loss in metrics and counts."""
    return f"itc/{first}-{second}"


def count_pairs(batch: Batch, terms: Sequence[Term]) -> dict[str, int]:
    """By term, the products of the batch that have both of its modalities."""
    present_MB = batch.present_BM.t()
    return {term.name: int((present_MB[term.modalities[0]] & present_MB[term.modalities[1]]).sum()) for term in terms}
