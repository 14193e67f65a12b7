"""Ranking metrics against scikit-learn, ranx and their definitions."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from m5ds.downstream.measure import metrics
from m5ds.downstream.measure.protocols import OFFICIAL, QUIRKS, STANDARD, get_protocol, score_rankings
from m5ds.downstream.search.index import exact_topk

CASES = [(seed, items) for seed in range(6) for items in (1, 3, 7, 25)]


def random_case(seed: int, items: int, queries: int = 40):
    """Scores with many ties and relevance with empty rows; hits in rank order, ties by index."""
    random = np.random.default_rng(seed)
    score_QG = random.integers(0, max(2, items // 2), (queries, items)).astype(np.float64)
    relevant_QG = random.random((queries, items)) < random.choice([0.0, 0.1, 0.4, 1.0], (queries, 1))
    order_QG = np.argsort(-score_QG, axis=1, kind="stable")
    return score_QG, relevant_QG, np.take_along_axis(relevant_QG, order_QG, 1), relevant_QG.sum(1)


def without_ties(score_QG):
    """Scores in [0, 1] whose strict order is ours: equal scores by index."""
    rank_QG = np.argsort(np.argsort(-score_QG, axis=1, kind="stable"), axis=1)
    return (score_QG.shape[1] - rank_QG) / score_QG.shape[1]


@pytest.mark.parametrize(("seed", "items"), CASES)
@pytest.mark.parametrize("k", [1, 5, 10])
def test_ndcg_equals_scikit_learn(seed, items, k):
    score_QG, relevant_QG, hit_QK, positives_Q = random_case(seed, items)
    ours_Q = metrics.ndcg(hit_QK[:, :k], positives_Q, k)
    if items == 1:  # scikit-learn refuses a single document
        np.testing.assert_array_equal(ours_Q, relevant_QG[:, 0])
        return
    for q in range(len(ours_Q)):
        theirs = ndcg_score(relevant_QG[q : q + 1], without_ties(score_QG)[q : q + 1], k=k, ignore_ties=True)
        assert abs(ours_Q[q] - theirs) < 1e-9


def test_ndcg_averaged_over_the_orders_of_ties_equals_scikit_learns_treatment_of_ties():
    random = np.random.default_rng(3)
    for _ in range(10):
        score_G, relevant_G = random.integers(0, 2, 5), random.random(5) < 0.5
        values = []
        for order in itertools.permutations(range(5)):
            ranked = sorted(order, key=lambda g: -score_G[g])
            values.append(metrics.ndcg(relevant_G[ranked][None], np.array([relevant_G.sum()]), 3)[0])
        assert abs(np.mean(values) - ndcg_score(relevant_G[None], score_G[None].astype(float), k=3)) < 1e-9


@pytest.mark.parametrize(("seed", "items"), CASES)
def test_average_precision_over_the_whole_list_equals_scikit_learn(seed, items):
    score_QG, relevant_QG, hit_QK, positives_Q = random_case(seed, items)
    ours_Q = metrics.average_precision(hit_QK, positives_Q, items)
    for q in np.flatnonzero(positives_Q):
        assert abs(ours_Q[q] - average_precision_score(relevant_QG[q], without_ties(score_QG)[q])) < 1e-9
    assert (ours_Q[positives_Q == 0] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("items", [3, 25])
def test_all_ranking_metrics_equal_ranx(items):
    ranx = pytest.importorskip("ranx")
    score_QG, relevant_QG, hit_QK, positives_Q = random_case(11, items)
    score_QG = without_ties(score_QG)
    kept = np.flatnonzero(positives_Q)  # ranx needs a relevant document for each query
    qrels = ranx.Qrels({f"q{q}": {f"d{g}": 1 for g in np.flatnonzero(relevant_QG[q])} for q in kept})
    run = ranx.Run({f"q{q}": {f"d{g}": score_QG[q, g] for g in range(items)} for q in kept})
    for k in (1, 5, 10):
        ours = {
            "precision": metrics.precision(hit_QK, k),
            "recall": metrics.recall(hit_QK, positives_Q, k),
            "mrr": metrics.reciprocal_rank(hit_QK, k),
            "ndcg": metrics.ndcg(hit_QK, positives_Q, k),
            # ranx divides by all positives, the textbook AP@k by those that fit into k
            "map": metrics.average_precision(hit_QK, positives_Q, k)
            * np.minimum(k, positives_Q)
            / np.maximum(1, positives_Q),
        }
        names = [f"{name}@{k}" for name in ours]
        ranx.evaluate(qrels, run, names, make_comparable=True)
        for name, values_Q in ours.items():
            for q in kept:
                assert abs(run.scores[f"{name}@{k}"][f"q{q}"] - values_Q[q]) < 1e-9, (name, k, q)


def test_one_hit_at_rank_one_of_ten_is_one_officially_and_a_tenth_by_the_textbook():
    hit_QK = np.zeros((1, 10), dtype=bool)
    hit_QK[0, 0] = True
    ten, ranked = np.array([10]), np.array([10])
    assert score_rankings(hit_QK, ranked, ten, (10,), OFFICIAL)["ap@10"][0] == 1.0
    assert score_rankings(hit_QK, ranked, ten, (10,), STANDARD)["ap@10"][0] == pytest.approx(0.1, abs=1e-15)


def released_code(ranked, positive, topk):
    """The arithmetic of the released evaluation, written anew from PAPER.md section 3.1."""
    topk = min(topk, len(positive), len(ranked))
    found, total = 0, 0.0
    for place, name in enumerate(ranked[:topk], start=1):
        if name in positive:
            found += 1
            total += found / place
    return (total / found if found else 0.0), found / topk


def test_official_protocol_equals_the_released_arithmetic():
    random = np.random.default_rng(0)
    for _ in range(50):
        ranked = list(random.permutation(40)[: random.integers(1, 12)])
        positive = set(random.permutation(40)[: random.integers(1, 15)].tolist())
        hit_QK = np.zeros((1, 12), dtype=bool)
        hit_QK[0, : len(ranked)] = [g in positive for g in ranked]
        scores = score_rankings(hit_QK, np.array([len(ranked)]), np.array([len(positive)]), (1, 5, 10), OFFICIAL)
        assert set(scores) == {f"{name}@{k}" for name in ("ap", "prec") for k in (1, 5, 10)}
        for k in (1, 5, 10):
            ap, prec = released_code(ranked, positive, k)
            assert scores[f"ap@{k}"][0] == pytest.approx(ap, abs=1e-12)
            assert scores[f"prec@{k}"][0] == pytest.approx(prec, abs=1e-12)


@pytest.mark.parametrize("quirk", QUIRKS)
def test_each_quirk_is_switched_by_its_name(quirk):
    protocol = get_protocol(quirk)
    assert [name for name in QUIRKS if getattr(protocol, name)] == [quirk]
    assert not protocol.only_paper_metrics


def test_unknown_protocol_names_the_known_ones():
    with pytest.raises(ValueError, match="standard, official, or quirks.*ap_over_hits"):
        get_protocol("ap_over_hits,typo")


def test_official_and_standard_agree_at_one_hit_per_rank_one():
    """mAP@1 is Prec@1 by construction in both protocols (PAPER.md section 3.1)."""
    random = np.random.default_rng(5)
    hit_QK = random.random((30, 10)) < 0.3
    positives_Q = hit_QK.sum(1) + 1
    for protocol in (STANDARD, OFFICIAL):
        scores = score_rankings(hit_QK, np.full(30, 10), positives_Q, (1,), protocol)
        np.testing.assert_array_equal(scores["ap@1"], scores["prec@1"])


def test_fewer_items_than_k_are_missing_hits():
    hit_QK = np.array([[True, False, True]])
    assert metrics.precision(hit_QK, 10)[0] == pytest.approx(0.2)
    assert metrics.recall(hit_QK, np.array([4]), 10)[0] == 0.5
    assert metrics.average_precision(hit_QK, np.array([4]), 10)[0] == pytest.approx((1 + 2 / 3) / 4)
    empty = np.zeros((2, 0), dtype=bool)
    assert metrics.ndcg(empty, np.array([3, 0]), 5).tolist() == [0.0, 0.0]
    assert metrics.reciprocal_rank(empty, 5).tolist() == [0.0, 0.0]


def test_k_of_zero_is_refused():
    with pytest.raises(ValueError, match="k must be at least 1"):
        metrics.precision(np.zeros((1, 3), dtype=bool), 0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        score_rankings(np.zeros((1, 3), dtype=bool), np.array([3]), np.array([1]), (0, 5))


def test_exact_search_ranks_ties_as_these_tests_do():
    score_QG, _, _, _ = random_case(2, 25, queries=10)
    _, rows_QK = exact_topk(score_QG, np.eye(25), 25)
    np.testing.assert_array_equal(rows_QK, np.argsort(-score_QG, axis=1, kind="stable"))
