"""The tasks of a baseline, as results that compare with those of models."""

import numpy as np

from m5ds.downstream import settings as downstream_settings
from m5ds.downstream.embed.evaluation_data import use_file
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.tasks import tasks
from m5ds.downstream.tasks.baselines import BASELINES, embed, nearest_votes
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.jobs import projection
from m5ds.downstream.tasks.probe_job import label_tables, needed_splits


def evaluate_baseline(name: str, evaluation: Evaluation) -> list[Result]:
    """Coarse retrieval, clustering, classification and, except on `train`, a linear probe; instance retrieval where it
    is by file or by group.

    Queries and gallery are those of a model; what is learned comes from `train`.
    """
    settings, manifest = evaluation.settings, evaluation.manifest
    # A probe would be tested on what it learned from.
    probed = [] if settings.test_split == "train" else needed_splits(evaluation)
    train = list(evaluation.products("train"))
    test = list(evaluation.products(settings.test_split))
    vectorizer = BASELINES[name][1](train)

    def vectors(products, split):
        return embed(name, vectorizer, products, split, manifest.hash, manifest.modalities)

    tested = vectors(test, settings.test_split)
    uncertainty = evaluation.uncertainty
    split = settings.coarse_retrieval.gallery_split or settings.test_split
    searched = tested if split == settings.test_split else vectors(list(evaluation.products(split)), split)
    tables, extras = tasks.coarse_retrieval(
        tested, searched, settings.coarse_retrieval, uncertainty, evaluation.all_labels()
    )
    results = [_result("coarse_retrieval", name, evaluation, tables, extras)]
    clusters = tasks.clustering(tested, settings.clustering, uncertainty)
    results.append(_result("clustering", name, evaluation, clusters, {"projection": projection(tested)}))
    whole = learned = vectors(train, "train")
    if evaluation.labelled_ids is not None:
        learned = learned.take(np.array([name in evaluation.labelled_ids for name in learned.ids]))
    votes_NC = nearest_votes(learned, tested, len(evaluation.level.names))
    table = tasks.classification(tested.ids, tested.label_N, votes_NC[None], evaluation.classes, uncertainty)
    results.append(_result("classification", name, evaluation, [table], {}))
    if probed:
        sets = {"train": whole, settings.test_split: tested}
        for split in probed:
            if split not in sets:
                sets[split] = vectors(list(evaluation.products(split)), split)
        probes, not_scored = label_tables(evaluation, sets, settings.linear_probe.label_fractions, standardized=False)
        results.append(_result("linear_probe", name, evaluation, probes, {"not_scored": not_scored}))
    config = settings.instance_retrieval
    if config.instance == "file" and BASELINES[name][0] == ("image",):
        queries, gallery = (
            vectors(list(evaluation.products(settings.test_split, use_file(number))), settings.test_split)
            for number in (config.query_file, 0)
        )
        found = tasks.instance_retrieval(queries, gallery, config, uncertainty)
        results.append(_result("instance_retrieval", name, evaluation, *found))
    elif config.instance == "group":
        found = tasks.instance_retrieval(tested, tested, config, uncertainty)
        results.append(_result("instance_retrieval", name, evaluation, *found))
    return results


def _result(task: str, name: str, evaluation: Evaluation, tables: list[Table], extras: dict) -> Result:
    return Result(
        task=task,
        stage=name,
        source=name,
        fingerprint=name,
        shards=str(evaluation.shards),
        manifest_hash=evaluation.manifest.hash,
        split=evaluation.settings.test_split,
        settings=downstream_settings.to_dict(evaluation.settings),
        tables=tables,
        extras=extras,
    )
