"""The linear probe of a model or a baseline: embed the splits, fit, one table a share of labels and a modality.

Shape letters: N products.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m5ds.downstream.embed.embeddings import EmbeddingSet, check_modalities, id_order
from m5ds.downstream.embed.encoding import Request, encode_split
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.pretrained import Pretrained
from m5ds.downstream.measure.results import Table
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.labels import drawn_labels
from m5ds.downstream.tasks.linear_probe import ALONE, ProbeData, label_name, probe_table
from m5ds.train import distributed


def run(evaluation: Evaluation, pretrained: Pretrained) -> tuple[list[Table], dict[str, Any]] | None:
    """Tables of the test split on rank 0, None elsewhere. Collective.

    `ValueError`, before anything is embedded: the model has seen the labels, or splits or categories do not do.
    """
    config, names = evaluation.settings.linear_probe, pretrained.model.names
    if pretrained.head is not None:
        raise ValueError(
            f"{pretrained.source} was finetuned on the training labels that a probe would learn from; pass its"
            " pretraining run as --checkpoint"
        )
    splits = needed_splits(evaluation)
    # Read here, so that what is wrong with the labels is said before the work, on every rank.
    assert evaluation.all_classes.kept_C.any()

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
        for split in splits
    }
    tables: list[Table] = []
    not_scored: dict[str, str] = {}
    with distributed.stop_together():
        if distributed.rank() == 0:
            sides = [{split: sets[number] for split, sets in found.items() if sets} for number in range(len(subsets))]
            tables, not_scored = label_tables(evaluation, sides[0], config.label_fractions)
            for side, subset in zip(sides[1:], subsets[1:], strict=True):
                more, missing = label_tables(evaluation, side, [1.0], name=subset[0] + ALONE, shown_only=True)
                tables, not_scored = tables + more, not_scored | missing
            if not tables:
                raise ValueError("; ".join(dict.fromkeys(not_scored.values())))
    return (tables, {"not_scored": not_scored}) if distributed.rank() == 0 else None


def needed_splits(evaluation: Evaluation) -> list[str]:
    """`train`, the tested split and, where a strength is to be chosen, `validation`.

    `ValueError`: one is not there, or the tested one also teaches or chooses.
    """
    tested, there = evaluation.settings.test_split, evaluation.manifest.splits
    chooses = len(evaluation.settings.linear_probe.inverse_regularization) > 1
    if tested == "train":
        raise ValueError("a linear probe learns from `train`; set test_split to another split")
    if chooses and tested == "validation":
        raise ValueError(
            "linear_probe.inverse_regularization would be chosen on the split that is tested, validation; give it one"
            " value or test on another split"
        )
    if chooses and "validation" not in there:
        raise ValueError(
            "there is no split validation to choose linear_probe.inverse_regularization on; give"
            " linear_probe.inverse_regularization one value"
        )
    for split, remedy in (("train", "a linear probe needs it"), (tested, "set test_split to one of these")):
        if split not in there:
            raise ValueError(f"no split {split!r} in the shards, which have {', '.join(there)}; {remedy}")
    return ["train", *(["validation"] if chooses else []), tested]


def label_tables(
    evaluation: Evaluation,
    sets: dict[str, EmbeddingSet],
    fractions: Sequence[float],
    *,
    name: str | None = None,
    standardized: bool = True,
    shown_only: bool = False,
) -> tuple[list[Table], dict[str, str]]:
    """One table a share of the labels, called `name` or after the share; by that name, why one could not be scored.

    `shown_only` leaves out products that have none of the modalities shown, in every split.
    """
    settings, classes = evaluation.settings, evaluation.all_classes
    # L-BFGS rounds by the rows' order, so that is the ids', not the shards'.
    order_N = id_order(sets["train"].ids)
    sets = {split: products.by_id() for split, products in sets.items()}
    has_N = ~sets["train"].empty_N if shown_only else np.ones(len(sets["train"]), dtype=bool)
    lacking = int(sets[settings.test_split].empty_N.sum())
    if shown_only:
        sets = {split: products.take(~products.empty_N) for split, products in sets.items()}
    train, test = sets["train"], sets[settings.test_split]
    titles = {name or label_name(fraction): fraction for fraction in fractions}
    if not all(map(len, sets.values())):
        return [], dict.fromkeys(titles, "a split has no product with it")
    data = ProbeData.of(train, sets.get("validation"), test, classes, standardized=standardized)
    tables, not_scored = [], {}
    for title, fraction in titles.items():
        try:
            table = probe_table(
                title,
                data,
                [drawn_N[order_N][has_N] for drawn_N in _draws(evaluation, fraction)],
                test,
                settings.linear_probe,
                classes,
                evaluation.uncertainty,
                label_fraction=fraction,
                modalities="+".join(train.info.modalities),
                products_without_these=lacking,
            )
        except ValueError as error:
            not_scored[title] = str(error)
        else:
            tables.append(table)
    return tables, not_scored


def _draws(evaluation: Evaluation, fraction: float) -> list[NDArray[np.bool_]]:
    """Which training products' labels are known, in the split's order. All: one draw."""
    seeds = range(1 if fraction == 1.0 else evaluation.settings.linear_probe.draws)
    return [
        np.concatenate(drawn_labels(evaluation.train_reader, fraction, evaluation.settings.seed + number))
        for number in seeds
    ]
