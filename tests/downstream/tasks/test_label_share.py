"""Finetuning with a share of the labels, and retrieval in another split's gallery."""

import dataclasses

import numpy as np
import pytest

from m5ds.config import ConfigError
from m5ds.data.shards.reader import ShardReader
from m5ds.downstream import settings as downstream_settings
from m5ds.downstream.embed.pretrained import load_pretrained
from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig, RetrievalConfig
from m5ds.downstream.tasks.baseline_jobs import evaluate_baseline
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.jobs import evaluate_task
from m5ds.downstream.tasks.labels import SubsetReader, drawn_labels, read_labels


def drawn(reader: ShardReader, fraction: float, seed: int = 0) -> np.ndarray:
    return np.concatenate(drawn_labels(reader, fraction, seed))


def test_a_larger_share_holds_the_smaller_one(shards):
    reader = ShardReader(shards, "train")
    half, most, whole = (drawn(reader, fraction) for fraction in (0.5, 0.9, 1.0))
    assert 0 < half.sum() < most.sum() <= whole.sum() == (read_labels(reader) >= 0).sum()
    assert not (half & ~most).any()
    assert (drawn(reader, 0.5, seed=1) != half).any()


def test_a_subset_reads_the_products_that_its_index_lists(shards):
    reader = ShardReader(shards, "train")
    kept = drawn_labels(reader, 0.5, 0)
    subset = SubsetReader(reader, kept)
    assert subset.shard_sizes == [int(mask.sum()) for mask in kept]
    assert subset.num_products == len(read_labels(subset)) == sum(subset.shard_sizes)
    for shard, size in enumerate(subset.shard_sizes):
        index = subset.index(shard)
        rows = np.flatnonzero(kept[shard])
        assert len(index.present) == len(index.text_chars) == len(index.table_chars) == size
        for place in range(size):
            product = subset.read(shard, place)
            assert product.id == index.table["id"][place].as_py() == reader.read(shard, int(rows[place])).id
            assert product.present == index.present[place]


def test_classes_and_neighbours_come_from_the_share_alone(shards):
    config = ClassificationConfig(label_fraction=0.5, rare_classes="keep")
    settings = DownstreamConfig(name="few", test_split="train", num_replicates=20, classification=config)
    evaluation = Evaluation(settings, str(shards))
    assert evaluation.classes.count_C.sum() == len(evaluation.labelled_ids) < len(evaluation.train_label_N)
    whole = dataclasses.replace(settings, classification=dataclasses.replace(config, label_fraction=1.0))
    assert Evaluation(whole, str(shards)).labelled_ids is None
    # Every product's own neighbour is in the gallery of the whole; with half of the labels it often is not.
    of_half, of_whole = (
        next(r for r in evaluate_baseline("tf-idf", Evaluation(one, str(shards))) if r.task == "classification")
        for one in (settings, whole)
    )
    accuracy = [result.tables[0].metrics["accuracy"].estimate for result in (of_half, of_whole)]
    assert accuracy[0] < accuracy[1]


def test_coarse_retrieval_searches_the_configured_split(shards, exported):
    pretrained = load_pretrained(exported)
    settings = DownstreamConfig(
        name="gallery", test_split="validation", num_replicates=20, coarse_retrieval=RetrievalConfig()
    )
    own = evaluate_task("coarse_retrieval", Evaluation(settings, str(shards)), pretrained, "pretrain")
    other = dataclasses.replace(settings, coarse_retrieval=RetrievalConfig(gallery_split="train"))
    evaluation = Evaluation(other, str(shards))
    result = evaluate_task("coarse_retrieval", evaluation, pretrained, "pretrain")
    sizes = {split: ShardReader(shards, split).num_products for split in ("train", "validation")}
    assert own.table("standard").facts["gallery"] == sizes["validation"]
    assert result.table("standard").facts["gallery"] == sizes["train"]
    assert result.table("standard").facts["queries"] == sizes["validation"]
    train_ids = set(ShardReader(shards, "train").index(0).table["id"].to_pylist())
    found = {item["id"] for example in result.extras["examples"] for item in example["found"]}
    assert found <= train_ids


def test_instance_retrieval_has_no_other_gallery():
    with pytest.raises(ConfigError, match="instance_retrieval.gallery_split"):
        downstream_settings.load("configs/downstream/base.yaml", ["instance_retrieval.gallery_split=train"])
