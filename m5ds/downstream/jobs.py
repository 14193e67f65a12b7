"""The tasks from a checkpoint and shards to results: embed, score, record. All functions are collective.

Shape letters: N products, C categories.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m5ds.data.manifest import read_manifest
from m5ds.data.reader import ShardReader
from m5ds.downstream import settings as downstream_settings
from m5ds.downstream import tasks
from m5ds.downstream.embeddings import EmbeddingSet, check_modalities
from m5ds.downstream.encoding import Request, encode_split
from m5ds.downstream.evaluation_data import EvaluationData, Transform, use_file
from m5ds.downstream.features import FeatureOptions
from m5ds.downstream.labels import ClassChoice, choose_classes, read_labels
from m5ds.downstream.pretrained import Pretrained
from m5ds.downstream.results import Result, Table
from m5ds.downstream.settings import DownstreamConfig, RetrievalConfig


def stage_of(pretrained: Pretrained, untrained: bool) -> str:
    """`untrained`, `finetune` (after classification) or `pretrain` (zero-shot), as the paper names its columns."""
    return "untrained" if untrained else "pretrain" if pretrained.head is None else "finetune"


def evaluate_task(
    task: str, settings: DownstreamConfig, pretrained: Pretrained, shards: str, *, stage: str
) -> Result | None:
    """clustering, coarse_retrieval or instance_retrieval on the test split; the result on rank 0, None elsewhere."""
    run = {"clustering": _clustering, "coarse_retrieval": _coarse, "instance_retrieval": _instance}[task]
    found = run(settings, pretrained, shards)
    if found is None:
        return None
    return make_result(task, settings, pretrained, shards, stage, *found)


def make_result(
    task: str,
    settings: DownstreamConfig,
    pretrained: Pretrained,
    shards: str,
    stage: str,
    tables: list[Table],
    extras: dict[str, Any],
) -> Result:
    """The record of a task on the test split."""
    return Result(
        task=task,
        stage=stage,
        source=pretrained.source,
        fingerprint=pretrained.fingerprint,
        shards=str(shards),
        manifest_hash=read_manifest(shards).hash,
        split=settings.test_split,
        settings=downstream_settings.to_dict(settings),
        tables=tables,
        extras=extras,
    )


def open_data(
    settings: DownstreamConfig, pretrained: Pretrained, shards: str, transform: Transform | None = None
) -> EvaluationData:
    """The test split as this model reads it."""
    return EvaluationData(
        shards,
        settings.test_split,
        pretrained.model.spec,
        pretrained.tokenizer,
        batch_size=settings.batch_size,
        num_threads=settings.data.num_threads,
        transform=transform,
    )


def uncertainty_of(settings: DownstreamConfig, shards: str) -> tasks.Uncertainty:
    """Intervals and frequency groups as configured."""
    return tasks.Uncertainty(
        num_replicates=settings.num_replicates,
        seed=settings.seed,
        train_label_N=read_labels(ShardReader(shards, "train")),
        rule=tasks.RULES[settings.frequency],
    )


def all_labels(shards: str) -> NDArray[np.int64]:
    """Labels of every product of every split: the released code's whole ground truth."""
    return np.concatenate([read_labels(ShardReader(shards, split)) for split in read_manifest(shards).splits])


def feature_options(config: RetrievalConfig, modalities: tuple[str, ...]) -> FeatureOptions:
    """The features that the section asks for."""
    operation = "concat" if config.states == "dense" else config.operation
    return FeatureOptions(
        modalities=modalities, states=config.states, operation=operation, normalized=config.normalized
    )


def _chosen(names: list[str] | None, pretrained: Pretrained) -> tuple[str, ...]:
    return pretrained.model.names if names is None else check_modalities(names, pretrained.model.names)


def _sides(
    config: RetrievalConfig, settings: DownstreamConfig, pretrained: Pretrained, shards: str
) -> tuple[EmbeddingSet, EmbeddingSet] | None:
    """Queries and gallery; embedded together where they differ in what is shown only."""
    options = [
        feature_options(config, _chosen(names, pretrained))
        for names in (config.query_modalities, config.gallery_modalities)
    ]
    if config.instance == "file":
        sides = [
            encode_split(pretrained, open_data(settings, pretrained, shards, use_file(number)), [Request(options=one)])
            for number, one in zip((config.query_file, 0), options, strict=True)
        ]
        return None if sides[0] is None or sides[1] is None else (sides[0][0], sides[1][0])
    requests = [Request(options=one) for one in dict.fromkeys(options)]
    sets = encode_split(pretrained, open_data(settings, pretrained, shards), requests)
    return None if sets is None else (sets[0], sets[-1])


def _coarse(settings: DownstreamConfig, pretrained: Pretrained, shards: str):
    sides = _sides(settings.coarse_retrieval, settings, pretrained, shards)
    if sides is None:
        return None
    uncertainty = uncertainty_of(settings, shards)
    return tasks.coarse_retrieval(*sides, settings.coarse_retrieval, uncertainty, all_labels(shards))


def _instance(settings: DownstreamConfig, pretrained: Pretrained, shards: str):
    sides = _sides(settings.instance_retrieval, settings, pretrained, shards)
    if sides is None:
        return None
    return tasks.instance_retrieval(*sides, settings.instance_retrieval, uncertainty_of(settings, shards))


def _clustering(settings: DownstreamConfig, pretrained: Pretrained, shards: str):
    config = settings.clustering
    modalities = _chosen(config.modalities, pretrained)
    if config.states == "dense":
        options = FeatureOptions(modalities=modalities, states="dense", operation="concat")
    else:
        options = FeatureOptions(modalities=modalities, states=config.states, operation=config.operation)
    sets = encode_split(pretrained, open_data(settings, pretrained, shards), [Request(options=options)])
    if sets is None:
        return None
    tables = tasks.clustering(sets[0], config, uncertainty_of(settings, shards))
    return tables, {"projection": projection(sets[0])}


def classification_table(
    settings: DownstreamConfig, pretrained: Pretrained, shards: str, *, name: str = "test"
) -> Table | None:
    """The finetuned model's table on the test split; None on ranks other than 0. `ValueError` without a head."""
    config = settings.classification
    options = FeatureOptions(
        modalities=config.shown(pretrained.model.names), states="dense", operation="concat", normalized=False
    )
    sets = encode_split(pretrained, open_data(settings, pretrained, shards), [Request(options=options)])
    if sets is None:
        return None
    products = sets[0]
    assert pretrained.head is not None
    return tasks.classification(
        products.ids,
        products.label_N,
        pretrained.head.logits(products.vector_ND),
        class_choice(settings, shards),
        uncertainty_of(settings, shards),
        name,
    )


def class_choice(settings: DownstreamConfig, shards: str) -> ClassChoice:
    """The categories that the classifier learns, by the configured policy for rare ones."""
    return choose_classes(
        read_labels(ShardReader(shards, "train")),
        read_manifest(shards).categories,
        minimum=settings.classification.min_class_products,
        rare=settings.classification.rare_classes,
    )


def projection(products: EmbeddingSet, limit: int = 2000) -> dict[str, Any]:
    """t-SNE of at most `limit` labelled products: `xy` [N][2], `label` [N], for the report's scatter plot."""
    from sklearn.manifold import TSNE

    rows = np.flatnonzero((products.label_N >= 0) & ~products.empty_N)[:limit]
    if len(rows) < 10:
        return {}
    model = TSNE(2, perplexity=min(30, (len(rows) - 1) // 3), init="pca", random_state=0)
    xy_N2 = model.fit_transform(products.vector_ND[rows].astype(np.float32))
    return {"xy": np.round(xy_N2, 2).tolist(), "label": products.label_N[rows].tolist()}


def default_output(settings: DownstreamConfig, task: str, stage: str) -> Path:
    """Where a task's result goes unless --out says otherwise."""
    return Path(settings.output_dir) / settings.name / f"{task}-{stage}"
