"""No number of any task depends on the order of the products, to the last bit."""

import dataclasses

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.measure import bootstrap, metrics
from m5ds.downstream.measure.protocols import QUIRKS
from m5ds.downstream.settings import ClusteringConfig, RetrievalConfig
from m5ds.downstream.tasks import tasks
from m5ds.downstream.tasks.baselines import nearest_votes
from m5ds.downstream.tasks.clustering import cluster
from m5ds.downstream.tasks.jobs import projection
from m5ds.downstream.tasks.labels import choose_classes

COUNT = 90
TRAIN_LABELS = np.repeat(np.arange(6), [120, 60, 30, 15, 8, 4])
UNCERTAINTY = tasks.Uncertainty(num_replicates=40, train_label_N=TRAIN_LABELS)


def products(seed=0, count=COUNT, **options):
    """Coarse values, so that many scores tie; some products unlabelled, some empty, groups of two or three."""
    random = np.random.default_rng(seed)
    present_NM = random.random((count, 3)) < 0.6
    vector_ND = random.integers(-1, 2, (count, 4)) * 0.1 * present_NM.any(1)[:, None]
    return embedding_set(
        vector_ND,
        random.integers(-1, 7, count),
        ids=[f"{(i * 37) % count:02d}-{seed}" for i in range(count)],
        present_NM=present_NM,
        group=[f"g{i % 40}" if i % 3 else "" for i in range(count)],
        **options,
    )


def mixed(one, seed):
    return one.take(np.random.default_rng(seed).permutation(len(one)))


def plain(table):
    values = {name: dict(zip(table.ids, value.tolist(), strict=True)) for name, value in table.values.items()}
    return {**{field.name: getattr(table, field.name) for field in dataclasses.fields(table)}, "values": values}


def same(tables, others):
    assert [plain(table) for table in tables] == [plain(table) for table in others]


PROTOCOLS = ["standard", "official", *QUIRKS]


@pytest.mark.parametrize("seed", range(3))
def test_coarse_retrieval(seed):
    config = RetrievalConfig(protocols=PROTOCOLS)
    one, other = products(seed), products(seed + 10, split="train")
    for gallery in (one, other):
        found = tasks.coarse_retrieval(one, gallery, config, UNCERTAINTY)
        again = tasks.coarse_retrieval(mixed(one, 5), mixed(gallery, 6), config, UNCERTAINTY)
        same(found[0], again[0])
        assert found[1] == again[1]


@pytest.mark.parametrize("instance", ["product", "group"])
def test_instance_retrieval(instance):
    config = RetrievalConfig(instance=instance, protocols=PROTOCOLS)
    one = products(1, modalities=("image",))
    other = products(1, modalities=("text",)) if instance == "product" else one
    found = tasks.instance_retrieval(one, other, config, UNCERTAINTY)
    again = tasks.instance_retrieval(mixed(one, 1), mixed(other, 2), config, UNCERTAINTY)
    same(found[0], again[0])
    assert found[1] == again[1]


def test_equal_scores_are_ranked_by_id():
    one = embedding_set(np.ones((5, 2)), [0, 0, 1, 1, 0], ids=["e", "a", "d", "c", "b"])
    (table,), extras = tasks.coarse_retrieval(one, one, RetrievalConfig(protocols=["standard"]), UNCERTAINTY)
    assert table.ids == ("a", "b", "c", "d", "e")
    assert [hit["id"] for hit in extras["examples"][0]["found"]] == ["b", "c", "d", "e"]
    assert [hit["id"] for hit in extras["examples"][-1]["found"]] == ["a", "b", "c", "d"]
    assert table.values["prec@1"].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_clustering_its_start_and_its_scores(seed):
    one = products(seed)
    config = ClusteringConfig(seeds=[0, 1], num_clusters=5)
    same(
        tasks.clustering(one, config, UNCERTAINTY),
        tasks.clustering(mixed(one, seed), config, UNCERTAINTY),
    )
    first, second = cluster(one, seed=seed), cluster(mixed(one, 9), seed=seed)
    assert first.ids == second.ids and first.scores() == second.scores()
    np.testing.assert_array_equal(first.cluster_N, second.cluster_N)


def test_scores_of_clusters_themselves():
    """scikit-learn's mutual information sums over cells in the order of their first products."""
    random = np.random.default_rng(0)
    label_N, cluster_N = random.integers(0, 40, 700), random.integers(0, 30, 700)
    scores = {name: set() for name in ("normalized_mutual_information", "adjusted_rand_index", "purity")}
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(700)
        for name, values in scores.items():
            values.add(getattr(metrics, name)(label_N[order], cluster_N[order]))
    assert {name: len(values) for name, values in scores.items()} == dict.fromkeys(scores, 1)


@pytest.mark.parametrize("num_classifiers", [1, 3])
def test_classification(num_classifiers):
    random = np.random.default_rng(0)
    classes = choose_classes(TRAIN_LABELS, tuple("abcdefg"), minimum=1, rare="keep")
    ids = [f"{(i * 37) % COUNT:02d}" for i in range(COUNT)]
    label_N, logits_DNC = random.integers(-1, 7, COUNT), random.integers(0, 3, (num_classifiers, COUNT, 7)) * 1.0
    order = random.permutation(COUNT)
    same(
        [tasks.classification(ids, label_N, logits_DNC, classes, UNCERTAINTY)],
        [tasks.classification([ids[i] for i in order], label_N[order], logits_DNC[:, order], classes, UNCERTAINTY)],
    )


def test_votes_of_the_nearest():
    train, test = products(3, split="train"), products(4)
    order = np.random.default_rng(1).permutation(len(test))
    np.testing.assert_array_equal(
        nearest_votes(train, test, 7)[order], nearest_votes(mixed(train, 2), test.take(order), 7)
    )


def test_the_picture_of_the_embeddings():
    one = products(5, count=40)
    assert projection(one) == projection(mixed(one, 1))


@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrap_intervals(grouped):
    random = np.random.default_rng(0)
    values_SN = random.normal(size=(3, 200)) * 10.0 ** random.integers(-3, 3, 200)
    keys_N = bootstrap.keys_of([f"p{i % 50 if grouped else i}" for i in range(200)])
    order = random.permutation(200)
    options = {"num_replicates": 60}
    for function, values in (
        (bootstrap.bootstrap_mean, values_SN[0]),
        (bootstrap.bootstrap_seeds, values_SN),
    ):
        assert function(values, keys_N, **options) == function(values[..., order], keys_N[order], **options)
    assert bootstrap.bootstrap_difference(
        values_SN[0], values_SN[1], keys_N, **options
    ) == bootstrap.bootstrap_difference(values_SN[0][order], values_SN[1][order], keys_N[order], **options)


def test_bootstrap_of_a_statistic_hands_out_rows_by_key():
    random = np.random.default_rng(0)
    value_N, keys_N = random.normal(size=80), bootstrap.keys_of([f"p{i}" for i in range(80)])
    order = random.permutation(80)

    def interval(value_N, keys_N):
        return bootstrap.bootstrap_statistic(lambda rows: float(value_N[rows].std()), keys_N, num_replicates=40)

    assert interval(value_N, keys_N) == interval(value_N[order], keys_N[order])
