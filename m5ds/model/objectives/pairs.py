"""Which modality pairs are contrasted, and what their losses are called."""

import itertools

from m5ds.config import ModelConfig


def contrastive_pairs(spec: ModelConfig) -> tuple[tuple[str, str], ...]:
    """Pairs of modality names, each in table order. Raises ValueError for a pair that the model cannot contrast."""
    names = spec.modality_names
    chosen = spec.contrastive.pairs
    if chosen == "none":
        return ()
    if isinstance(chosen, str):
        summarised = [name for name in names if spec.modalities[name].cls != "none"]
        return tuple(itertools.pairwise(summarised) if chosen == "chain" else itertools.combinations(summarised, 2))
    pairs = []
    for first, second in chosen:
        for name in (first, second):
            if name not in names:
                raise ValueError(f"model.contrastive.pairs names {name!r}; the model has {', '.join(names)}")
            if spec.modalities[name].cls == "none":
                raise ValueError(f"model.contrastive.pairs names {name!r}, which has no summary (cls: none)")
        if first == second:
            raise ValueError(f"model.contrastive.pairs has {first!r} with itself")
        pairs.append(tuple(sorted((first, second), key=names.index)))
    if len(set(pairs)) != len(pairs):
        raise ValueError(f"model.contrastive.pairs repeats a pair: {chosen}")
    return tuple((first, second) for first, second in pairs)


def pair_name(first: str, second: str) -> str:
    """The name of the pair's loss in metrics and counts."""
    return f"itc/{first}-{second}"
