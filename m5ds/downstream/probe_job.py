"""The linear probe of a model or a baseline: embed the splits, fit, one table a share of labels and a modality.

Shape letters: N products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m5ds.downstream.embeddings import EmbeddingSet, check_modalities
from m5ds.downstream.encoding import Request, encode_split
from m5ds.downstream.features import FeatureOptions
from m5ds.downstream.labels import drawn_labels
from m5ds.downstream.linear_probe import ProbeData, TooFewLabelsError, label_name, probe_table
from m5ds.downstream.pretrained import Pretrained
from m5ds.downstream.results import Table
from m5ds.train import distributed

if TYPE_CHECKING:
    from m5ds.downstream.jobs import Evaluation


def run(evaluation: Evaluation, pretrained: Pretrained) -> tuple[list[Table], dict[str, Any]] | None:
    """Tables of the test split on rank 0, None elsewhere. Collective."""
    config, names = evaluation.settings.linear_probe, pretrained.model.names

    def chosen(given: list[str] | None, key: str) -> tuple[str, ...]:
        return names if given is None else check_modalities(given, names, f"linear_probe.{key}")

    alone = () if config.alone == [] else chosen(config.alone, "alone")
    subsets = list(dict.fromkeys([chosen(config.modalities, "modalities"), *((name,) for name in alone)]))
    requests = [
        Request(options=FeatureOptions(modalities=subset, states=config.states, operation=config.operation))
        for subset in subsets
    ]
    found = {
        split: encode_split(pretrained, evaluation.split(pretrained, split), requests, progress=f"embed {split}")
        for split in needed_splits(evaluation)
    }
    if distributed.rank():
        return None
    sides = [{split: sets[number] for split, sets in found.items() if sets} for number in range(len(subsets))]
    tables, extras = label_tables(evaluation, sides[0])
    for side, subset in zip(sides[1:], subsets[1:], strict=True):
        tables += label_tables(evaluation, side, fractions=[1.0], name=f"{subset[0]} only")[0]
    return tables, extras


def needed_splits(evaluation: Evaluation) -> list[str]:
    """`train`, the tested split and, where a strength is to be chosen, `validation`. `ValueError` without it."""
    splits = ["train", evaluation.settings.test_split]
    if len(evaluation.settings.linear_probe.inverse_regularization) > 1:
        if "validation" not in evaluation.manifest.splits:
            raise ValueError("no split 'validation' to choose on; give linear_probe.inverse_regularization one value")
        splits.append("validation")
    return list(dict.fromkeys(splits))


def label_tables(
    evaluation: Evaluation,
    sets: dict[str, EmbeddingSet],
    *,
    fractions: Sequence[float] | None = None,
    name: str | None = None,
    standardized: bool = True,
) -> tuple[list[Table], dict[str, Any]]:
    """One table a share of the labels (those of the settings unless given), called `name` or after the share; and why
    some could not be scored. `ValueError` where none could."""
    settings, classes = evaluation.settings, evaluation.classes
    train, test = sets["train"], sets[settings.test_split]
    validation = sets["validation"] if "validation" in needed_splits(evaluation) else None
    data = ProbeData.of(train, validation, test, classes, standardized=standardized)
    tables, not_scored = [], {}
    for fraction in settings.linear_probe.label_fractions if fractions is None else fractions:
        title = name or label_name(fraction)
        try:
            table = probe_table(
                title,
                data,
                _draws(evaluation, fraction),
                test,
                settings.linear_probe,
                classes,
                evaluation.uncertainty,
                label_fraction=fraction,
                modalities="+".join(train.info.modalities),
            )
        except TooFewLabelsError as error:
            not_scored[title] = str(error)
        else:
            tables.append(table)
    if not tables:
        raise ValueError("; ".join(not_scored.values()))
    return tables, {"not_scored": not_scored}


def _draws(evaluation: Evaluation, fraction: float) -> list[NDArray[np.bool_]]:
    """Which training products' labels are known, in the split's order. All: one draw."""
    seeds = range(1 if fraction == 1.0 else evaluation.settings.linear_probe.draws)
    return [
        np.concatenate(drawn_labels(evaluation.train_reader, fraction, evaluation.settings.seed + number))
        for number in seeds
    ]
