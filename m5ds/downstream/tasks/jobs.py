"""The tasks from a checkpoint and shards to results: embed, score, record. Everything that embeds is collective.

Shape letters: N products, C categories.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from m5ds.downstream.embed.embeddings import EmbeddingSet, check_modalities
from m5ds.downstream.embed.encoding import Request, encode_split
from m5ds.downstream.embed.evaluation_data import use_file
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.pretrained import Pretrained
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.settings import DownstreamConfig, RetrievalConfig
from m5ds.downstream.tasks import probe_job, tasks
from m5ds.downstream.tasks.evaluation import Evaluation


def stage_of(pretrained: Pretrained, untrained: bool) -> str:
    """`untrained`, `finetune` (after classification) or `pretrain` (zero-shot), as the paper names its columns."""
    return "untrained" if untrained else "pretrain" if pretrained.head is None else "finetune"


def evaluate_task(task: str, evaluation: Evaluation, pretrained: Pretrained, stage: str) -> Result | None:
    """A task that trains no encoder, on the test split; the result on rank 0, None elsewhere."""
    run = {
        "clustering": _clustering,
        "coarse_retrieval": _coarse,
        "instance_retrieval": _instance,
        "linear_probe": probe_job.run,
    }[task]
    try:
        found = run(evaluation, pretrained)
    except ValueError as error:
        raise ValueError(f"{task} on {evaluation.settings.test_split} of {evaluation.shards}: {error}") from error
    return None if found is None else evaluation.result(task, stage, pretrained, *found)


def feature_options(config: RetrievalConfig, modalities: tuple[str, ...]) -> FeatureOptions:
    """The features that the section asks for."""
    operation = "concat" if config.states == "dense" else config.operation
    return FeatureOptions(
        modalities=modalities, states=config.states, operation=operation, normalized=config.normalized
    )


def _chosen(names: list[str] | None, pretrained: Pretrained, key: str) -> tuple[str, ...]:
    return pretrained.model.names if names is None else check_modalities(names, pretrained.model.names, key)


def _sides(
    config: RetrievalConfig, evaluation: Evaluation, pretrained: Pretrained
) -> tuple[EmbeddingSet, EmbeddingSet] | None:
    """Queries and gallery; embedded together where they differ in what is shown only."""
    options = [
        feature_options(config, _chosen(getattr(config, key), pretrained, key))
        for key in ("query_modalities", "gallery_modalities")
    ]
    if config.instance == "file":
        sides = [
            encode_split(
                pretrained, evaluation.data(pretrained, f"file {number}", use_file(number)), [Request(options=one)]
            )
            for number, one in zip((config.query_file, 0), options, strict=True)
        ]
        return None if sides[0] is None or sides[1] is None else (sides[0][0], sides[1][0])
    split = config.gallery_split or evaluation.settings.test_split
    if split != evaluation.settings.test_split:
        pair = [
            encode_split(pretrained, evaluation.split(pretrained, name), [Request(options=one)])
            for name, one in zip((evaluation.settings.test_split, split), options, strict=True)
        ]
        return None if pair[0] is None or pair[1] is None else (pair[0][0], pair[1][0])
    sets = encode_split(
        pretrained, evaluation.data(pretrained), [Request(options=one) for one in dict.fromkeys(options)]
    )
    return None if sets is None else (sets[0], sets[-1])


def _coarse(evaluation: Evaluation, pretrained: Pretrained):
    config = evaluation.settings.coarse_retrieval
    sides = _sides(config, evaluation, pretrained)
    if sides is None:
        return None
    return tasks.coarse_retrieval(*sides, config, evaluation.uncertainty, evaluation.all_labels())


def _instance(evaluation: Evaluation, pretrained: Pretrained):
    config = evaluation.settings.instance_retrieval
    sides = _sides(config, evaluation, pretrained)
    return None if sides is None else tasks.instance_retrieval(*sides, config, evaluation.uncertainty)


def _clustering(evaluation: Evaluation, pretrained: Pretrained):
    config = evaluation.settings.clustering
    check_projection(config.projection)
    options = FeatureOptions(
        modalities=_chosen(config.modalities, pretrained, "clustering.modalities"),
        states=config.states,
        operation="concat" if config.states == "dense" else config.operation,
    )
    sets = encode_split(pretrained, evaluation.data(pretrained), [Request(options=options)])
    if sets is None:
        return None
    drawn = projection(sets[0], config.projection)
    return tasks.clustering(sets[0], config, evaluation.uncertainty), {"projection": drawn}


def classification_table(evaluation: Evaluation, pretrained: Pretrained, name: str = "test") -> Table | None:
    """A model with a classifier's head on the test split; None on ranks other than 0."""
    assert pretrained.head is not None
    options = FeatureOptions(
        modalities=evaluation.settings.classification.shown(pretrained.model.names),
        states="dense",
        operation="concat",
        normalized=False,
    )
    sets = encode_split(pretrained, evaluation.data(pretrained), [Request(options=options)])
    if sets is None:
        return None
    logits_NC = pretrained.head.logits(sets[0].vector_ND)
    return tasks.classification(
        sets[0].ids, sets[0].label_N, logits_NC[None], evaluation.classes, evaluation.uncertainty, name
    )


def check_projection(method: str) -> None:
    """`ValueError` where the method's package is not installed."""
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise ValueError(
            "clustering.projection: umap needs a package that is not here; pip install umap-learn or set it to t-sne"
        )


def projection(products: EmbeddingSet, method: str = "t-sne", limit: int = 2000) -> dict[str, Any]:
    """At most `limit` labelled products in the plane, for the report: `method`, `xy` [N][2], `label` [N]."""
    products = products.by_id()
    rows = np.flatnonzero((products.label_N >= 0) & ~products.empty_N)[:limit]
    if len(rows) < 10:
        return {}
    vector_ND = products.vector_ND[rows].astype(np.float32)
    if method == "umap":
        from umap import UMAP

        name, xy_N2 = "UMAP", UMAP(n_neighbors=min(15, len(rows) - 1), random_state=0).fit_transform(vector_ND)
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30, (len(rows) - 1) // 3)
        name, xy_N2 = "t-SNE", TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(vector_ND)
    label_N = products.label_N[rows]
    return {"method": name, "xy": np.round(np.asarray(xy_N2, np.float64), 2).tolist(), "label": label_N.tolist()}


def folder_of(settings: DownstreamConfig) -> Path:
    """Where this configuration's results go, one folder a task and stage."""
    return Path(settings.output_dir) / settings.name
