"""The tasks from a checkpoint to results, on real shards and a tiny model."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch
from downstream_examples import embedding_set, tiny_run

from m5ds.data.catalogue.quickstart import TOKENIZER
from m5ds.data.tokenizer import load_tokenizer
from m5ds.downstream import settings as downstream_settings
from m5ds.downstream.embed.pretrained import load_pretrained
from m5ds.downstream.finetuning.classifier import add_classifier
from m5ds.downstream.report.report import TITLES
from m5ds.downstream.settings import (
    ClassificationConfig,
    ClusteringConfig,
    DownstreamConfig,
    RetrievalConfig,
    RobustnessConfig,
)
from m5ds.downstream.tasks import jobs, robustness
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.jobs import classification_table, evaluate_task, stage_of
from m5ds.downstream.tasks.robustness import evaluate_robustness
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining


@pytest.fixture
def pretrained(exported):
    return load_pretrained(exported)


@pytest.fixture
def evaluation(shards):
    settings = DownstreamConfig(
        name="test",
        test_split="train",
        num_replicates=40,
        frequency="shares",
        classification=ClassificationConfig(dense_size=8, rare_classes="keep"),
        instance_retrieval=RetrievalConfig(query_modalities=["image"], gallery_modalities=["text", "table"]),
        robustness=RobustnessConfig(rates=[0.0, 0.5], noise_rates=[0.5], by_modality=False, policies=["drop", "zeros"]),
    )
    return Evaluation(settings, str(shards))


@pytest.mark.parametrize("task", ["coarse_retrieval", "instance_retrieval", "clustering"])
def test_each_task_gives_tables_with_intervals(evaluation, pretrained, task):
    result = evaluate_task(task, evaluation, pretrained, stage_of(pretrained, False))
    assert (result.task, result.stage, result.split) == (task, "pretrain", "train")
    assert result.manifest_hash == evaluation.manifest.hash and result.fingerprint == pretrained.fingerprint
    for table in result.tables:
        for interval in table.metrics.values():
            assert interval.low - 1e-9 <= interval.estimate <= interval.high + 1e-9
            assert np.isfinite([interval.low, interval.high]).all()
    assert task in TITLES


def test_official_positives_are_counted_over_every_split(evaluation, pretrained):
    assert len(evaluation.all_labels()) == sum(split.num_products for split in evaluation.manifest.splits.values())


def test_a_classifiers_table_and_dense_features_come_from_its_head(evaluation, pretrained):
    count_C = np.ones(len(evaluation.manifest.categories), np.int64)
    added = add_classifier(pretrained.model, evaluation.settings.classification, count_C, seed=0)
    finetuned = dataclasses.replace(pretrained, head=added.head.eval())
    table = classification_table(evaluation, finetuned)
    data = evaluation.data(finetuned)
    model = pretrained.model.eval()
    fused = [model(item.batch, masked=False).fused_BMD.flatten(1) for item in data.batches()]
    logits = torch.cat([added.head(fused_BW, None, 0)[1] for fused_BW in fused])
    labels = torch.cat([item.batch.label_B for item in data.batches()])
    allowed = torch.from_numpy(evaluation.classes.count_C > 0)
    predicted = logits.masked_fill(~allowed, -torch.inf).argmax(1)
    assert table.metrics["accuracy"].estimate == pytest.approx((predicted == labels).double().mean().item())
    assert stage_of(finetuned, False) == "finetune"
    dense = dataclasses.replace(evaluation.settings, coarse_retrieval=RetrievalConfig(states="dense"))
    result = evaluate_task("coarse_retrieval", Evaluation(dense, evaluation.shards), finetuned, "finetune")
    assert result.table("standard").metrics["ap@10"].estimate > 0


def test_robustness_covers_all_subsets_rates_and_policies(evaluation, pretrained):
    result = evaluate_robustness(evaluation, pretrained, "pretrain")
    tables = {table.name: table for table in result.tables}
    found = [*tables, *result.extras["not_scored"]]
    for policy in ("drop", "zeros"):
        mine = [name for name in found if name.startswith(f"{policy}: ")]
        assert len(mine) == 31 + 2 * 30 + 2 + 1 + 1, mine
    whole = tables["drop: image+text+table+video+audio"].metrics["ap@10"].estimate
    assert tables["drop: missing 0"].metrics["ap@10"].estimate == pytest.approx(whole)
    assert pretrained.model.spec.absent == "drop"
    assert result.extras["harmony"] == {"kind": "none"}
    cosine = np.array(result.extras["correlation"]["fused"]["cosine"], dtype=float)
    np.testing.assert_allclose(np.diag(cosine), 1, atol=1e-3)
    np.testing.assert_allclose(cosine, cosine.T, atol=1e-3)


def test_a_model_with_tokens_stands_under_all_three_policies(evaluation, shards, tmp_path):
    tokenizer = load_tokenizer(shards.parent / TOKENIZER)
    config = M5Config.for_tokenizer(tiny_run(tmp_path, "model.absent=token").model, tokenizer, initializer_seed=3)
    M5ForPretraining(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model" / "tokenizer")
    pretrained = load_pretrained(tmp_path / "model")
    asked = RobustnessConfig(policies=["drop", "token", "zeros"], rates=[0.5], noise_rates=[], by_modality=False)
    settings = dataclasses.replace(evaluation.settings, robustness=asked)
    result = evaluate_robustness(Evaluation(settings, evaluation.shards), pretrained, "pretrain")
    scores = [result.table(f"{policy}: missing 0.5").values["ap@10"].tolist() for policy in asked.policies]
    assert scores[0] != scores[1] != scores[2] != scores[0]
    assert pretrained.model.spec.absent == "token"


def test_an_error_in_the_middle_of_the_policies_leaves_the_model_as_it_was(evaluation, pretrained, monkeypatch):
    seen = []

    def fail_under_zeros(followed, *arguments, **options):
        seen.append(followed.model.spec.absent)
        if seen[-1] == "zeros":
            raise OSError("the disk is gone")
        return

    monkeypatch.setattr(robustness, "encode_split", fail_under_zeros)
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate_robustness(evaluation, pretrained, "pretrain")
    assert seen[0] == "drop" and seen[-1] == "zeros"
    assert pretrained.model.spec.absent == "drop"


def test_tokens_that_were_never_trained_are_refused_before_the_work(evaluation, pretrained, monkeypatch):
    asked = RobustnessConfig(policies=["drop", "token"])
    broken = Evaluation(dataclasses.replace(evaluation.settings, robustness=asked), evaluation.shards)
    monkeypatch.setattr(robustness, "encode_split", None)
    with pytest.raises(ValueError, match="robustness.policies: token needs a model that was trained with it"):
        evaluate_robustness(broken, pretrained, "pretrain")


def test_instance_retrieval_by_another_file_uses_two_views(evaluation, pretrained):
    config = RetrievalConfig(instance="file", query_file=0, query_modalities=["image"], gallery_modalities=["image"])
    settings = dataclasses.replace(evaluation.settings, instance_retrieval=config)
    result = evaluate_task("instance_retrieval", Evaluation(settings, evaluation.shards), pretrained, "pretrain")
    # Query and gallery show the same file here, so every product finds itself.
    assert result.table("standard").metrics["recall@1"].estimate == 1.0


def test_umap_is_optional_and_its_absence_is_said_before_anything_is_embedded(evaluation, pretrained, monkeypatch):
    settings = dataclasses.replace(evaluation.settings, clustering=ClusteringConfig(projection="umap", seeds=[0]))
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(jobs, "encode_split", None)
    with pytest.raises(ValueError, match="clustering.projection: umap needs .*; pip install umap-learn"):
        evaluate_task("clustering", Evaluation(settings, evaluation.shards), pretrained, "pretrain")


def test_projections_name_their_method(monkeypatch):
    class Umap:
        def __init__(self, n_neighbors, random_state):
            assert (n_neighbors, random_state) == (11, 0)

        def fit_transform(self, vector_ND):
            return vector_ND[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    products = embedding_set(np.random.default_rng(0).normal(size=(12, 4)))
    for method, name in (("umap", "UMAP"), ("t-sne", "t-SNE")):
        drawn = jobs.projection(products, method)
        assert drawn["method"] == name and np.shape(drawn["xy"]) == (12, 2) and drawn["label"] == [0] * 12
    assert jobs.projection(products.take(np.arange(9))) == {}


def test_settings_survive_the_record(evaluation):
    tree = downstream_settings.to_dict(evaluation.settings)
    assert tree["robustness"]["policies"] == ["drop", "zeros"]


def test_unknown_test_splits_are_refused(evaluation, pretrained):
    settings = dataclasses.replace(evaluation.settings, test_split="nowhere")
    with pytest.raises(ValueError, match="no split 'nowhere'; they have train, validation"):
        evaluate_task("clustering", Evaluation(settings, evaluation.shards), pretrained, "pretrain")
