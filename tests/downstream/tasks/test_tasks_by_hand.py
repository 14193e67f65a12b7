"""The tasks' tables, number by number, from a handful of products."""

from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.measure import bootstrap, metrics
from m5ds.downstream.measure.frequency import COUNTS, SHARES, FrequencyRule
from m5ds.downstream.measure.protocols import OFFICIAL, STANDARD
from m5ds.downstream.settings import ClusteringConfig, RetrievalConfig
from m5ds.downstream.tasks import clustering, tasks
from m5ds.downstream.tasks.labels import UNSEEN_NAMES, choose_classes
from m5ds.downstream.tasks.retrieval import RetrievalResult

IDS = tuple(f"p{i}" for i in range(6))


def uncertainty(**options):
    return tasks.Uncertainty(**({"num_replicates": 30, "seed": 5} | options))


def interval(values, ids, count=30, seed=5):
    return bootstrap.bootstrap_mean(np.array(values), bootstrap.keys_of(ids), num_replicates=count, seed=seed)


def test_defaults_of_an_interval_are_the_documented_ones():
    plain = tasks.Uncertainty()
    assert (plain.num_replicates, plain.seed, plain.train_label_N, plain.rule) == (1000, 0, None, COUNTS)
    assert tasks.RULES == {"counts": COUNTS, "shares": SHARES}
    assert (tasks.NUM_EXAMPLES, tasks.EXAMPLE_DEPTH) == (8, 6)


def test_replicates_of_a_statistic_are_at_most_300(monkeypatch):
    seen = []
    monkeypatch.setattr(tasks, "bootstrap_statistic", lambda *given, **options: seen.append(options))
    for asked in (299, 300, 301):
        uncertainty(num_replicates=asked).statistic(len, IDS)
    assert seen == [{"num_replicates": n, "seed": 5} for n in (299, 300, 300)]


def test_groups_have_an_interval_each_from_two_products_on():
    rule = FrequencyRule(head=2, tail=2)
    train = np.array([0, 0, 0, 1, -1])
    values, label_N = np.array([1.0, 0.0, 0.25, 0.5]), np.array([0, 0, 1, -1])
    found = uncertainty(train_label_N=train, rule=rule).groups(values, label_N, list("abcd"))
    low_high = interval([1.0, 0.0], ["a", "b"])
    assert found == {
        "head": {"estimate": 0.5, "num_products": 2, "low": low_high.low, "high": low_high.high},
        "tail": {"estimate": 0.25, "num_products": 1},
    }
    assert uncertainty().groups(values, label_N, list("abcd")) == {}
    assert uncertainty(train_label_N=np.array([-1, -1])).groups(values, label_N, list("abcd")) == {}


def ranking(count=3, **changes):
    described = {
        "ids": tuple("abcdefghijkl"[:count]),
        "code_Q": np.arange(count) % 2,
        "scores": {"ap@1": np.linspace(0, 1, count), "prec@1": np.zeros(count), "ap@5": np.linspace(1, 0, count)},
        "protocol": OFFICIAL,
        "num_queries": 9,
        "num_gallery": 8,
        "no_positive": 2,
        "empty_queries": 1,
        "ranked": tuple(("abcdefghijkl"[(q + 1) % count], "z") for q in range(count)),
    }
    return RetrievalResult(**(described | changes))


def test_a_ranking_is_recorded_with_its_counts_and_the_groups_of_its_deepest_ap():
    given = uncertainty(train_label_N=np.array([0, 0, 1]), rule=FrequencyRule(head=1, tail=1))
    table = tasks.retrieval_table("n", ranking(), given, labelled=True)
    assert table.facts == {
        "protocol": "official",
        "scored_queries": 3,
        "queries": 9,
        "gallery": 8,
        "queries_without_positive": 2,
        "empty_queries": 1,
    }
    assert (table.name, table.ids) == ("n", ("a", "b", "c"))
    assert table.metrics["ap@1"] == interval([0.0, 0.5, 1.0], "abc")
    assert list(table.metrics) == list(table.values) == ["ap@1", "prec@1", "ap@5"]
    assert {name: group["estimate"] for name, group in table.groups.items()} == {"head": 0.5, "medium": 0.5}
    assert tasks.retrieval_table("n", ranking(), given, labelled=False).groups == {}
    assert tasks.retrieval_table("n", ranking(2), given, labelled=False).ids == ("a", "b")
    with pytest.raises(ValueError, match="n: only 1 query could be scored"):
        tasks.retrieval_table("n", ranking(1), given, labelled=False)


def test_examples_are_evenly_spaced_and_say_what_was_right():
    code_of = {name: i % 2 for i, name in enumerate("abcdefghijkl")} | {"z": 0}
    found = tasks._examples(ranking(12), code_of)
    assert [row["query"] for row in found] == ["a", "b", "d", "e", "g", "h", "j", "l"]
    assert found[0]["found"] == [{"id": "b", "relevant": False}, {"id": "z", "relevant": True}]
    assert found[1]["found"] == [{"id": "c", "relevant": False}, {"id": "z", "relevant": False}]
    assert [row["query"] for row in tasks._examples(ranking(3), code_of)] == ["a", "b", "c"]
    deep = tasks._examples(ranking(2, ranked=(tuple("abcdefgh"), ("a",))), code_of)
    assert [shown["id"] for shown in deep[0]["found"]] == list("abcdef")


def products(label_N=(0, 0, 1, 1, 2, 2), **options):
    angles = np.array([0, 10, 60, 70, 130, 137]) * np.pi / 180
    return embedding_set(np.stack([np.cos(angles), np.sin(angles)], 1), label_N, ids=IDS, **options)


def test_coarse_retrieval_asks_as_configured(monkeypatch):
    seen = []

    def evaluate(queries, gallery, **options):
        seen.append((queries.ids, gallery.ids, options))
        return ranking(3, ids=IDS[:3], protocol=options["protocol"], ranked=(("p1",),) * 3)

    monkeypatch.setattr(tasks, "evaluate_retrieval", evaluate)
    queries, gallery = products(modalities=("text",)), products((0, 0, 0, 1, 1, 1), modalities=("image", "table"))
    config = RetrievalConfig(ks=[2, 3], protocols=["standard", "official"])
    order = np.array([3, 1, 0, 5, 4, 2])
    tables, extras = tasks.coarse_retrieval(
        queries.take(order), gallery.take(order), config, uncertainty(), np.arange(9)
    )
    assert [table.name for table in tables] == ["standard", "official"]
    for (query_ids, gallery_ids, options), protocol in zip(seen, (STANDARD, OFFICIAL), strict=True):
        assert query_ids == gallery_ids == IDS
        assert options["query_code_Q"].tolist() == [0, 0, 1, 1, 2, 2]
        assert options["gallery_code_G"].tolist() == [0, 0, 0, 1, 1, 1]
        assert options["population_code"].tolist() == list(range(9))
        assert (options["ks"], options["protocol"], options["exclude_self"]) == ((2, 3), protocol, True)
    for table in tables:
        assert table.facts["query_modalities"] == "text" and table.facts["gallery_modalities"] == "image+table"
    assert [row["found"][0]["relevant"] for row in extras["examples"]] == [True, False, True]
    config = RetrievalConfig(instance="group")
    groups = [f"g{i % 2}" for i in range(6)]
    seen.clear()
    tasks.instance_retrieval(products(group=groups), products(group=groups), config, uncertainty())
    assert seen[0][2]["population_code"] is None and seen[0][2]["exclude_self"] is True
    assert seen[0][2]["query_code_Q"].tolist() == [0, 1] * 3
    given = uncertainty(train_label_N=np.array([0, 1]))
    tables, _ = tasks.instance_retrieval(queries, gallery, RetrievalConfig(), given)
    assert seen[-1][2]["exclude_self"] is False and tables[0].groups == {}
    assert seen[-1][2]["query_code_Q"].tolist() == seen[-1][2]["gallery_code_G"].tolist() == list(range(6))
    tables, _ = tasks.coarse_retrieval(queries, gallery, RetrievalConfig(), given)
    assert tables[0].groups


def test_files_of_one_modality_are_instances_too():
    config = RetrievalConfig(instance="file", query_modalities=["image"], gallery_modalities=["image"], ks=[1])
    shown = products(modalities=("image",))
    tables, _ = tasks.instance_retrieval(shown, shown, config, uncertainty())
    assert tables[0].metrics["recall@1"].estimate == 1.0


def test_clusters_are_scored_for_each_seed_and_averaged(monkeypatch):
    clusters = {7: [0, 0, 1, 1, 1], 9: [0, 1, 0, 1, 0]}
    label_N, ids = np.array([0, 0, 1, 1, 2]), ("a", "b", "c", "d", "e")

    def cluster(given, *, num_clusters, seed):
        return clustering.ClusteringResult(
            ids=ids, label_N=label_N, cluster_N=np.array(clusters[seed]), num_clusters=num_clusters, num_left_out=3
        )

    monkeypatch.setattr(tasks, "cluster", cluster)
    given = SimpleNamespace(info=SimpleNamespace(modalities=("image", "text")))
    (table,) = tasks.clustering(given, ClusteringConfig(num_clusters=2, seeds=[7, 9]), uncertainty())
    assert (table.name, table.ids) == ("k-means", ids)
    assert table.facts == {"clusters": 2, "seeds": [7, 9], "products": 5, "left_out": 3, "modalities": "image+text"}
    assert {name: values.tolist() for name, values in table.values.items()} == {
        "label": [0, 0, 1, 1, 2],
        "cluster/7": [0, 0, 1, 1, 1],
        "cluster/9": [0, 1, 0, 1, 0],
    }
    assert table.metrics["purity"].estimate == pytest.approx((4 / 5 + 2 / 5) / 2)
    for name, metric in (("nmi", metrics.normalized_mutual_information), ("ari", metrics.adjusted_rand_index)):
        mean = np.mean([metric(label_N, np.array(found)) for found in clusters.values()])
        assert table.metrics[name].estimate == pytest.approx(mean)


def classes(names="abcdefg", counts=(3, 2, 1, 1, 1, 0, 1), **options):
    label_N = np.repeat(np.arange(len(counts)), counts)
    return choose_classes(label_N, tuple(names), **({"minimum": 1, "rare": "keep"} | options))


def test_a_classifiers_guesses_are_scored_product_by_product():
    """Category f has no training product: it is never guessed, and its product is an error."""
    label_N = np.array([0, 0, 1, 6, -1, 5])
    logits_NC = np.zeros((6, 7), np.float32)
    logits_NC[0] = [9, 8, 7, 6, 5, 99, 4]  # right, f aside
    logits_NC[1] = [1, 8, 7, 6, 5, 99, 9]  # wrong, and sixth
    logits_NC[2] = [9, 8, 7, 6, 5, 99, 4]  # wrong, second
    logits_NC[3] = [9, 8, 7, 6, 1, 99, 5]  # wrong, fifth
    logits_NC[5] = [0, 0, 0, 0, 0, 99, 0]  # would be right, if f could be guessed
    order = [3, 1, 0, 5, 4, 2]
    given = uncertainty(train_label_N=np.array([0, 0, 0, 1]), rule=FrequencyRule(head=2, tail=2))
    table = tasks.classification(
        [IDS[i] for i in order], label_N[order], logits_NC[order][None], classes(), given, "named"
    )
    kept = ("p0", "p1", "p2", "p3", "p5")
    assert (table.name, table.ids) == ("named", kept)
    assert table.values["accuracy"].tolist() == [1, 0, 0, 0, 0]
    assert table.values["top5_accuracy"].tolist() == [1, 0, 1, 1, 0]
    assert table.values["label"].tolist() == [0, 0, 1, 6, 5]
    assert table.values["predicted/0"].tolist() == [0, 6, 0, 0, 0]
    assert table.metrics["accuracy"] == interval([1, 0, 0, 0, 0], kept)
    assert table.metrics["top5_accuracy"].estimate == pytest.approx(3 / 5)
    assert table.metrics["seen_accuracy"] == interval([1, 0, 0, 0], kept[:4])
    assert table.metrics["macro_accuracy"].estimate == pytest.approx((1 / 2 + 0 + 0 + 0) / 4)
    assert table.facts == {
        "products": 5,
        "left_out": 1,
        "categories": 6,
        "rare_categories_left_out": 0,
        "tested_categories": 4,
        "unseen_categories": 1,
        "products_of_unseen_categories": 1,
        UNSEEN_NAMES: ["f"],
    }
    assert {name: group["estimate"] for name, group in table.groups.items()} == {
        "head": 0.5,
        "tail": 0.0,
        "unseen": 0.0,
    }


def test_of_several_classifiers_the_means_count_those_that_were_taught_the_category():
    logits_DNC = np.array([[[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]], [[2.0, -np.inf], [2.0, -np.inf], [1.0, -np.inf]]])
    chosen = classes("ab", (1, 1))
    table = tasks.classification(IDS[:3], np.array([0, 0, 1]), logits_DNC, chosen, uncertainty())
    assert table.name == "test"
    assert table.values["accuracy"].tolist() == [1.0, 1.0, 0.5]
    assert table.values["top5_accuracy"].tolist() == [1.0, 1.0, 0.5]
    assert table.metrics["macro_accuracy"].estimate == pytest.approx((1.0 + 0.5) / 2)
    assert "seen_accuracy" not in table.metrics
    assert table.values["predicted/1"].tolist() == [0, 0, 0]


def test_accuracy_of_seen_categories_needs_two_products_of_them():
    chosen = classes("abc", (1, 1, 0))
    for labels, there in (([0, 2, 2], False), ([0, 1, 2], True), ([0, 1, 1], False)):
        table = tasks.classification(IDS[:3], np.array(labels), np.eye(3)[None], chosen, uncertainty())
        assert ("seen_accuracy" in table.metrics) == there
    with pytest.raises(ValueError, match="1 of 3 products have a label of a kept category"):
        tasks.classification(IDS[:3], np.array([0, -1, -1]), np.eye(3)[None], chosen, uncertainty())
    two = tasks.classification(IDS[:2], np.array([0, 1]), np.eye(3)[None, :2], chosen, uncertainty())
    assert two.metrics["accuracy"].estimate == 1.0


def test_rare_categories_that_were_left_out_are_counted():
    chosen = classes("abc", (2, 2, 1), minimum=2, rare="drop")
    table = tasks.classification(IDS[:4], np.array([0, 1, 2, 0]), np.eye(4)[None, :, :3], chosen, uncertainty())
    assert (table.facts["rare_categories_left_out"], table.facts["left_out"], table.facts["categories"]) == (1, 1, 2)
