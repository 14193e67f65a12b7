"""The tasks on embeddings, their records, and paired comparisons."""

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.measure.frequency import SHARES
from m5ds.downstream.measure.results import Result, compare, read_result, write_result
from m5ds.downstream.settings import ClusteringConfig, RetrievalConfig
from m5ds.downstream.tasks import tasks
from m5ds.downstream.tasks.labels import choose_classes

LABELS = np.arange(90) % 6


def products(noise: float, seed: int = 0, **info):
    random = np.random.default_rng(seed)
    return embedding_set(np.eye(6)[LABELS] + noise * random.normal(size=(90, 6)), LABELS, **info)


def uncertainty(**options):
    train = np.repeat(np.arange(6), [50, 20, 15, 8, 4, 3])
    return tasks.Uncertainty(num_replicates=100, train_label_N=train, rule=SHARES, **options)


def result(task, tables, stage="pretrain", **changes):
    described = {"source": "run", "fingerprint": "f", "shards": "shards", "manifest_hash": "m", "split": "test"}
    return Result(task=task, stage=stage, settings={}, tables=tables, **(described | changes))


def test_coarse_retrieval_gives_a_table_a_protocol_with_frequency_groups():
    tables, extras = tasks.coarse_retrieval(products(0.5), products(0.5), RetrievalConfig(), uncertainty())
    assert [table.name for table in tables] == ["standard", "official"]
    assert {"ap@10", "recall@5", "ndcg@1"} <= set(tables[0].metrics)
    assert set(tables[0].groups) == {"head", "medium", "tail"}
    assert sum(group["num_products"] for group in tables[0].groups.values()) == 90
    mean = sum(group["estimate"] * group["num_products"] for group in tables[0].groups.values()) / 90
    assert mean == pytest.approx(tables[0].metrics["ap@10"].estimate)
    assert tables[0].facts["gallery_modalities"] == "image+text+table"
    assert len(extras["examples"]) == tasks.NUM_EXAMPLES
    assert all(row["query"] not in [found["id"] for found in row["found"]] for row in extras["examples"])


def test_examples_say_which_finds_are_relevant():
    tables, extras = tasks.coarse_retrieval(products(0.01), products(0.01), RetrievalConfig(), uncertainty())
    assert tables[0].metrics["prec@10"].estimate == 1.0
    assert all(found["relevant"] for row in extras["examples"] for found in row["found"])


def test_instance_retrieval_across_modalities_finds_the_same_product():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(40, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = embedding_set(vectors, modalities=("text",))
    images = embedding_set(vectors + 0.01 * random.normal(size=(40, 8)), modalities=("image",))
    tables, _ = tasks.instance_retrieval(texts, images, RetrievalConfig(), uncertainty())
    assert tables[0].metrics["recall@1"].estimate == 1.0
    assert tables[0].groups == {}


def test_instance_retrieval_of_a_subset_against_itself_is_refused():
    with pytest.raises(ValueError, match="every product finds itself; set query_modalities"):
        tasks.instance_retrieval(products(0.1), products(0.1), RetrievalConfig(), uncertainty())


def test_instance_retrieval_by_group_never_finds_the_query_itself():
    grouped = embedding_set(np.eye(6)[LABELS], group=[f"g{label}" for label in LABELS])
    tables, extras = tasks.instance_retrieval(grouped, grouped, RetrievalConfig(instance="group"), uncertainty())
    assert tables[0].metrics["prec@10"].estimate == 1.0
    assert all(row["query"] not in [found["id"] for found in row["found"]] for row in extras["examples"])


def test_clustering_averages_over_seeds():
    table = tasks.clustering(products(0.6), ClusteringConfig(seeds=[0, 1]), uncertainty())[0]
    assert set(table.metrics) == {"nmi", "purity", "ari"}
    assert {"label", "cluster/0", "cluster/1"} == set(table.values)
    assert table.metrics["nmi"].low < table.metrics["nmi"].estimate < table.metrics["nmi"].high


def classes(minimum=1, rare="keep", counts=(5, 4, 3, 1)):
    return choose_classes(
        np.repeat(np.arange(len(counts)), counts), ("a", "b", "c", "d", "e"), minimum=minimum, rare=rare
    )


def test_classification_counts_products_of_unseen_categories_as_errors():
    label_N = np.array([0, 1, 2, 3, 4, -1])
    logits_NC = np.eye(5)[[0, 1, 2, 3, 4, 0]].astype(np.float32)
    table = tasks.classification([f"p{i}" for i in range(6)], label_N, logits_NC[None], classes(), uncertainty())
    assert table.metrics["accuracy"].estimate == pytest.approx(4 / 5)
    assert table.metrics["macro_accuracy"].estimate == pytest.approx(4 / 5)
    assert table.facts["products_of_unseen_categories"] == 1
    assert 4 not in table.values["predicted/0"]


def test_rare_categories_are_an_error_unless_dropped_or_kept():
    with pytest.raises(ValueError, match="1 of 4 categories have fewer than 2 training products .first: 'd'.; set"):
        classes(minimum=2, rare="error")
    dropped = classes(minimum=2, rare="drop")
    assert dropped.dropped == ("d",)
    assert dropped.apply(np.array([0, 3, -1, 4])).tolist() == [0, -1, -1, 4]
    assert classes(minimum=2, rare="keep").dropped == ()


@pytest.mark.parametrize(
    ("labels", "message"), [([-1, -1], "labels absent: none of the 2"), ([0, 0, 0], "at least two categories")]
)
def test_unusable_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        choose_classes(np.array(labels), ("a", "b"), minimum=1, rare="keep")


def test_results_come_back_as_they_were_written(tmp_path):
    tables, extras = tasks.coarse_retrieval(products(0.5), products(0.5), RetrievalConfig(), uncertainty())
    written = result("coarse_retrieval", tables)
    written.extras = extras
    write_result(tmp_path, written)
    found, tree = read_result(tmp_path)
    assert found.table("official").metrics == tables[1].metrics
    assert found.table("standard").ids == tables[0].ids
    for metric, values in tables[0].values.items():
        np.testing.assert_array_equal(found.table("standard").values[metric], values)
    assert found.extras == extras and tree["command"]
    with pytest.raises(ValueError, match="no table 'typo'; there are standard, official"):
        found.table("typo")


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tools/finetune.py wrote"):
        read_result(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="run the task again"):
        read_result(tmp_path)


@pytest.mark.parametrize("metric", ["ap@10", "prec@1"])
def test_paired_comparison_of_means_finds_the_better_model(metric):
    config = RetrievalConfig(protocols=["standard"])
    good, bad = (
        result("coarse_retrieval", tasks.coarse_retrieval(p, p, config, uncertainty())[0])
        for p in (products(0.2), products(1.5, seed=1))
    )
    difference = compare(good, bad, "standard", metric, num_replicates=200)
    assert difference.low > 0
    assert compare(bad, good, "standard", metric, num_replicates=200).high < 0
    assert not compare(good, good, "standard", metric, num_replicates=200).excludes_zero


def test_paired_comparison_of_clusterings_resamples_products():
    good, bad = (
        result("clustering", tasks.clustering(p, ClusteringConfig(seeds=[0, 1]), uncertainty()))
        for p in (products(0.2), products(2.0, seed=1))
    )
    difference = compare(good, bad, "k-means", "nmi", num_replicates=60)
    assert difference.estimate == pytest.approx(
        good.tables[0].metrics["nmi"].estimate - bad.tables[0].metrics["nmi"].estimate
    )
    assert difference.low > 0


def test_results_of_other_data_are_not_compared():
    tables, _ = tasks.coarse_retrieval(products(0.5), products(0.5), RetrievalConfig(), uncertainty())
    one, other = result("coarse_retrieval", tables), result("coarse_retrieval", tables, manifest_hash="another")
    with pytest.raises(ValueError, match="different data or splits"):
        compare(one, other, "standard", "ap@10")
    with pytest.raises(ValueError, match="has no value for each product"):
        compare(one, one, "standard", "speed")
