"""Baselines run through the same tasks as models."""

import dataclasses

import numpy as np
import pytest

from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig, LinearProbeConfig, RetrievalConfig
from m5ds.downstream.tasks import baselines
from m5ds.downstream.tasks.baseline_jobs import evaluate_baseline
from m5ds.downstream.tasks.evaluation import Evaluation


@pytest.fixture(scope="module")
def evaluation(shards):
    settings = DownstreamConfig(
        name="baselines",
        test_split="validation",
        num_replicates=40,
        frequency="shares",
        classification=ClassificationConfig(rare_classes="keep"),
        linear_probe=LinearProbeConfig(inverse_regularization=[1.0]),
        instance_retrieval=RetrievalConfig(
            instance="file", query_file=0, query_modalities=["image"], gallery_modalities=["image"]
        ),
    )
    # A larger set to measure on than this one's validation split.
    return Evaluation(dataclasses.replace(settings, test_split="train"), str(shards))


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_each_baseline_gives_results_of_every_task_that_it_can_do(evaluation, name):
    results = {result.task: result for result in evaluate_baseline(name, evaluation)}
    wanted = {"coarse_retrieval", "clustering", "classification"}
    assert set(results) == (wanted | {"instance_retrieval"} if name == "color histogram" else wanted)
    assert {result.stage for result in results.values()} == {name}
    assert results["coarse_retrieval"].manifest_hash == evaluation.manifest.hash
    if name == "tf-idf":  # titles name the category, and the tested products are the training ones here
        assert results["classification"].table("test").metrics["accuracy"].estimate > 0.8


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_a_baseline_is_probed_where_it_is_not_tested_on_what_it_learned(evaluation, name):
    tested = Evaluation(dataclasses.replace(evaluation.settings, test_split="validation"), evaluation.shards)
    (result,) = [result for result in evaluate_baseline(name, tested) if result.task == "linear_probe"]
    assert result.table("all labels").facts["labels"] == (evaluation.train_label_N >= 0).sum()
    assert "5 % of the labels" in {table.name for table in result.tables} | set(result.extras["not_scored"])


def test_histograms_are_unit_vectors_and_missing_pictures_are_marked(evaluation):
    products = list(baselines.read_products(evaluation.shards, "train"))
    products[0] = dataclasses.replace(products[0], media={})
    names = evaluation.manifest.modalities
    found = baselines.embed("color histogram", baselines.color_histogram([]), products, "train", "m", names)
    np.testing.assert_allclose(np.linalg.norm(found.vector_ND[~found.empty_N], axis=1), 1, atol=1e-5)
    assert found.empty_N[0] and not found.empty_N.all()


def test_votes_are_weighted_by_similarity(evaluation):
    products = list(baselines.read_products(evaluation.shards, "train"))
    vectorizer = baselines.tf_idf(products)
    found = baselines.embed("tf-idf", vectorizer, products, "train", "m", evaluation.manifest.modalities)
    votes_NC = baselines.nearest_votes(found, found, len(evaluation.manifest.categories))
    assert (votes_NC >= 0).all() and (votes_NC.sum(1) <= baselines.NEIGHBOURS + 1e-4).all()
    own_N = votes_NC[np.arange(len(found)), found.label_N]
    assert (own_N[~found.empty_N] >= 0.99).all()  # each finds itself
