"""Robustness: which conditions there are, what each is scored on, and what the report gets besides."""

from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import NAMES, embedding_set

from m5ds.downstream.settings import DownstreamConfig, RetrievalConfig, RobustnessConfig
from m5ds.downstream.tasks import robustness
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.downstream.tasks.robustness import Condition, conditions
from m5ds.downstream.tasks.tasks import Uncertainty

LABELS = np.array([0, 0, 1, 1])
VECTORS = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])


def settings(**options):
    chosen = {"rates": [0.25], "noise_rates": [0.5]} | options
    return DownstreamConfig(name="n", seed=6, num_replicates=20, robustness=RobustnessConfig(**chosen))


def test_conditions_are_subsets_rates_each_modality_and_shuffled_pairs(monkeypatch):
    lost, shuffled = [], []
    monkeypatch.setattr(
        robustness, "missing_at_random", lambda batch, rates, seed: lost.append((rates, seed)) or "keep"
    )
    monkeypatch.setattr(robustness, "with_presence", lambda batch, keep: (batch, keep))
    monkeypatch.setattr(robustness, "shuffled_pairs", lambda batch, rate, seed: shuffled.append((rate, seed)))
    found = conditions(settings(), ("image", "text"), "zeros")
    subset = {"kind": "subset", "policy": "zeros"}
    missing = {"kind": "missing", "policy": "zeros", "rate": 0.25}
    both = ("image", "text")
    assert [(c.name, c.facts, c.modalities) for c in found] == [
        ("zeros: image", subset | {"modalities": ["image"]}, ("image",)),
        ("zeros: text", subset | {"modalities": ["text"]}, ("text",)),
        ("zeros: image+text", subset | {"modalities": ["image", "text"]}, both),
        ("zeros: missing 0.25", missing | {"modality": "any"}, both),
        ("zeros: missing image 0.25", missing | {"modality": "image"}, both),
        ("zeros: missing text 0.25", missing | {"modality": "text"}, both),
        ("zeros: shuffled 0.5", {"kind": "shuffled", "policy": "zeros", "rate": 0.5}, both),
    ]
    assert [c.variant is None for c in found] == [True] * 3 + [False] * 4
    assert [c.variant("batch") for c in found[3:6]] == [("batch", "keep")] * 3
    found[6].variant("batch")
    assert lost == [({"image": 0.25, "text": 0.25}, 6), ({"image": 0.25}, 6), ({"text": 0.25}, 6)]
    assert shuffled == [(0.5, 6)]
    few = conditions(settings(subsets=False, by_modality=False, noise_rates=[]), ("image", "text"), "drop")
    assert [c.name for c in few] == ["drop: image+text", "drop: missing 0.25"]


def subset(modalities, products, kind="subset"):
    facts = {"kind": kind, "policy": "drop", "modalities": list(modalities)}
    return Condition(name="x", facts=facts, modalities=modalities), products


def test_each_proper_subset_is_asked_against_everything_both_ways():
    found = [subset(("text",), "t"), subset(NAMES, "lost", "missing"), subset(NAMES, "whole")]
    pairs = [(c.name, c.facts, c.modalities, a, b) for c, a, b in robustness._against_all(found, NAMES)]
    facts = {"policy": "drop", "modalities": ["text"]}
    assert pairs == [
        ("drop: text -> all", facts | {"kind": "subset_to_all"}, ("text",), "t", "whole"),
        ("drop: all -> text", facts | {"kind": "all_to_subset"}, ("text",), "whole", "t"),
    ]
    assert list(robustness._against_all(found[:2], NAMES)) == []


class Products:
    """States of two modalities side by side."""

    def __init__(self, vectors, present):
        self.vector_ND, self.present_NM = np.array(vectors, np.float32), np.array(present, bool)

    def __len__(self):
        return len(self.vector_ND)


def test_correlation_is_the_mean_cosine_over_products_that_have_both():
    """Absent modalities have zero vectors."""
    vectors = [[3, 4, 0, 2], [0, 5, 0, 0], [1, 0, 1, 0]]
    present = [[1, 1], [1, 0], [1, 1]]
    found = robustness._correlation(Products(vectors, present), ("a", "b"))
    assert found["names"] == ["a", "b"]
    assert found["cosine"] == [[1.0, pytest.approx((0.8 + 1.0) / 2)], [pytest.approx(0.9), 1.0]]
    nothing = robustness._correlation(Products([[1, 0, 0, 0]], [[1, 0]]), ("a", "b"))
    assert nothing["cosine"] == [[1.0, None], [None, None]]


def evaluation(normalized=True, kept=(True, True), count=(2, 2)):
    return SimpleNamespace(
        settings=SimpleNamespace(coarse_retrieval=RetrievalConfig(normalized=normalized)),
        uncertainty=Uncertainty(num_replicates=20),
        classes=ClassChoice(count_C=np.array(count), kept_C=np.array(kept), dropped=()),
    )


def test_dense_features_are_normalised_for_search_where_configured():
    dense = embedding_set([[3, 4], [0, 0]], states="dense", operation="concat")
    np.testing.assert_allclose(robustness._searched(dense, evaluation()).vector_ND, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert robustness._searched(dense, evaluation(normalized=False)) is dense
    plain = embedding_set([[3, 4]])
    assert robustness._searched(plain, evaluation()) is plain


def condition(kind="missing"):
    return Condition(name="c", facts={"kind": kind, "policy": "drop"}, modalities=("image",))


def test_a_product_that_lost_everything_fails_unless_subsets_are_compared():
    present = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]], bool)
    products = embedding_set(VECTORS, [0, 0, 0, 0], present_NM=present, modalities=("image",))
    headless = SimpleNamespace(head=None)
    lost = robustness._table(condition(), products, products, headless, evaluation())
    assert lost.facts["scored_queries"] == 4 and lost.facts["kind"] == "missing"
    assert list(lost.values) == ["ap@10"] and lost.values["ap@10"].tolist() == [1, 1, 1, 0]
    assert {"ap@1", "ap@10", "prec@10", "ndcg@1"} <= set(lost.metrics) and "accuracy" not in lost.metrics
    assert "ap@5" not in lost.metrics and lost.groups == {} and lost.name == "c"
    for kind in ("subset", "subset_to_all", "all_to_subset"):
        asked = robustness._table(condition(kind), products, products, headless, evaluation())
        assert asked.facts["scored_queries"] == 3


def test_a_classifier_also_has_its_accuracy_of_shown_products_with_a_kept_label():
    present = np.array([[1, 0, 0]] * 4 + [[0, 1, 0]], bool)
    products = embedding_set(
        [*VECTORS, [5, 5]],
        [0, 0, 1, 1, 0],
        present_NM=present,
        modalities=("image",),
        states="dense",
        operation="concat",
    )
    guesses = np.array([[2, 1, 9], [1, 2, 9], [1, 2, 9], [1, 2, 9]], np.float32)
    seen = []
    head = SimpleNamespace(logits=lambda dense: seen.append(dense) or guesses)
    three = evaluation(kept=(True, True, True), count=(2, 2, 0))
    table = robustness._table(condition(), products, products, SimpleNamespace(head=head), three)
    np.testing.assert_allclose(seen[0], VECTORS, rtol=1e-6)
    assert table.metrics["accuracy"].estimate == 3 / 4
    expected = Uncertainty(num_replicates=20).mean(np.array([1.0, 0, 1, 1]), products.ids[:4])
    assert table.metrics["accuracy"] == expected
    rare = evaluation(kept=(False, True, True), count=(0, 2, 2))
    table = robustness._table(condition(), products, products, SimpleNamespace(head=head), rare)
    assert table.metrics["accuracy"].estimate == 0.0
    other = products.take(np.arange(5))
    assert "accuracy" not in robustness._table(condition(), products, other, SimpleNamespace(head=head), three).metrics


def test_features_of_a_classifier_are_its_dense_layer_as_it_is():
    config = RetrievalConfig(operation="sum", normalized=False)
    plain = robustness._options(config, SimpleNamespace(head=None), ("image",))
    assert (plain.states, plain.operation, plain.normalized, plain.modalities) == ("fused", "sum", False, ("image",))
    dense = robustness._options(RetrievalConfig(), SimpleNamespace(head=1), ("image",))
    assert (dense.states, dense.operation, dense.normalized) == ("dense", "concat", False)


class Evaluation:
    """What `evaluate_robustness` asks; remembers which data it opened."""

    def __init__(self, **options):
        self.settings, self.opened = settings(**options), []
        self.uncertainty = Uncertainty(num_replicates=20)

    def check_head(self, pretrained):
        self.opened.append("head")

    def data(self, pretrained, name="", transform=None):
        self.opened.append(name)
        return name

    def result(self, task, stage, pretrained, tables, extras):
        return task, stage, tables, extras


@pytest.fixture
def robust(monkeypatch):
    """Runs the task over products whose vectors are the labels', or without a label under a missing rate."""

    def run(label_of=lambda name: LABELS, **options):
        def encode(pretrained, data, requests, *, progress):
            made = []
            for request in requests:
                label_N = label_of(request)
                made.append(embedding_set(np.tile(VECTORS, 3), label_N, modalities=request.options.modalities))
            return made

        monkeypatch.setattr(robustness, "encode_split", encode)
        monkeypatch.setattr(robustness, "mean_weights", lambda model, fused, present: fused.shape)
        monkeypatch.setattr(robustness, "damage_files", lambda share, seed: (share, seed))
        monkeypatch.setattr(robustness, "with_policy", lambda pretrained, policy: pretrained)
        monkeypatch.setattr(robustness, "check_policy", lambda pretrained, policy: None)
        spec = SimpleNamespace(absent="drop")
        model = SimpleNamespace(names=NAMES, spec=spec, projections=options.pop("projections", ("a",)))
        asked = Evaluation(**options)
        return robustness.evaluate_robustness(asked, SimpleNamespace(model=model, head=None), "stage"), asked

    return run


def test_every_condition_is_a_table_under_the_models_own_policy(robust):
    (task, stage, tables, extras), asked = robust()
    names = [table.name for table in tables]
    assert (task, stage) == ("robustness", "stage")
    assert len(names) == len(set(names)) == 7 + 1 + 3 + 1 + 2 * 6 + 1
    assert "drop: damaged files 0.5" in names and "drop: text -> all" in names
    damaged = next(table for table in tables if "damaged" in table.name)
    assert damaged.facts["kind"] == "damaged" and damaged.facts["rate"] == 0.5 and damaged.facts["policy"] == "drop"
    assert asked.opened == ["head", "", "damaged 0.5", ""]
    assert extras["not_scored"] == {} and extras["harmony"] == (4, 3, 2)
    assert list(extras["correlation"]) == ["fused", "contrastive"]
    (_, _, _, extras), _ = robust(projections=())
    assert list(extras["correlation"]) == ["fused"]
    (_, _, tables, _), _ = robust(policies=["zeros", "drop"], subsets=False, by_modality=False, noise_rates=[])
    assert [table.name for table in tables] == [
        *("zeros: image+text+table", "zeros: missing 0.25", "drop: image+text+table", "drop: missing 0.25")
    ]


def test_a_condition_that_cannot_be_scored_is_named_with_its_reason(robust):
    def labels(request):
        return LABELS if request.variant is None else np.full(4, -1)

    (_, _, tables, extras), _ = robust(labels, subsets=False, by_modality=False, noise_rates=[])
    assert [table.name for table in tables] == ["drop: image+text+table"]
    assert list(extras["not_scored"]) == ["drop: missing 0.25"]
    assert extras["not_scored"]["drop: missing 0.25"].startswith("queries: none of the 4 products has a label")
    with pytest.raises(ValueError, match="robustness: no condition could be scored: queries: none of the 4"):
        robust(lambda request: np.full(4, -1))


def test_only_rank_zero_has_a_result(robust, monkeypatch):
    monkeypatch.setattr(robustness.distributed, "rank", lambda: 1)
    assert robust(subsets=False)[0] is None
