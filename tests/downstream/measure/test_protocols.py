"""Metrics and protocols by hand, at their boundaries."""

import numpy as np
import pytest

from m5ds.downstream.measure import metrics
from m5ds.downstream.measure.protocols import OFFICIAL, QUIRKS, STANDARD, Protocol, get_protocol, score_rankings

HITS = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
POSITIVES = np.array([4, 1, 2])


def test_the_textbook_is_without_any_quirk_and_the_released_code_has_all():
    assert not any(getattr(STANDARD, quirk) for quirk in QUIRKS) and not STANDARD.only_paper_metrics
    assert all(getattr(OFFICIAL, quirk) for quirk in QUIRKS) and OFFICIAL.only_paper_metrics
    assert (STANDARD.name, OFFICIAL.name) == ("standard", "official")
    assert get_protocol("standard") is STANDARD and get_protocol("official") is OFFICIAL
    both = get_protocol("ap_over_hits, k_cut_to_positives")
    assert both == Protocol(name="ap_over_hits,k_cut_to_positives", ap_over_hits=True, k_cut_to_positives=True)


def test_each_metric_at_a_k_within_the_list():
    found = score_rankings(HITS, np.array([5, 5, 5]), POSITIVES, (3, 5))
    expected = {
        "ap@3": [(1 + 2 / 3) / 3, 0, 0],
        "prec@3": [2 / 3, 0, 0],
        "recall@3": [2 / 4, 0, 0],
        "mrr@3": [1, 0, 0],
        "ndcg@3": [(1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3) + 1 / np.log2(4)), 0, 0],
        "ap@5": [(1 + 2 / 3 + 3 / 5) / 4, 1 / 5, 0],
        "prec@5": [3 / 5, 1 / 5, 0],
        "recall@5": [3 / 4, 1, 0],
        "mrr@5": [1, 1 / 5, 0],
        "ndcg@5": [
            (1 + 1 / np.log2(4) + 1 / np.log2(6)) / sum(1 / np.log2(r) for r in (2, 3, 4, 5)),
            1 / np.log2(6),
            0,
        ],
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, err_msg=name)


def test_a_k_of_each_query_is_cut_to_its_positives_and_to_what_is_ranked():
    ranked = np.array([2, 5, 5])
    protocol = get_protocol("k_cut_to_positives")
    found = score_rankings(HITS, ranked, np.array([4, 1, 3]), (4,), protocol)
    assert found["prec@4"].tolist() == [1 / 2, 0.0, 0.0]  # k of 2, 1 and 3
    assert found["ap@4"].tolist() == [1 / 2, 0.0, 0.0]
    whole = score_rankings(HITS, np.array([5, 5, 5]), np.array([5, 5, 5]), (4,), protocol)
    assert whole["prec@4"].tolist() == [2 / 4, 0.0, 0.0]
    none = score_rankings(HITS[2:], np.array([0]), np.array([3]), (4,), OFFICIAL)
    assert none == {"ap@4": np.zeros(1), "prec@4": np.zeros(1)}


def test_precision_at_hits_is_averaged_over_hits_only_with_the_quirk():
    cut = np.array([3, 5, 5])
    assert metrics.average_precision(HITS, POSITIVES, cut, over_hits=True).tolist() == pytest.approx(
        [(1 + 2 / 3) / 2, 1 / 5, 0]
    )
    assert metrics.average_precision(HITS, POSITIVES, cut).tolist() == pytest.approx([(1 + 2 / 3) / 3, 1 / 5, 0])


def test_the_ideal_list_of_ndcg_may_be_longer_than_the_ranked_one():
    one = np.array([[True]])
    ideal = sum(1 / np.log2(rank) for rank in (2, 3, 4))
    assert metrics.ndcg(one, np.array([3]), 10)[0] == pytest.approx(1 / ideal)
    assert metrics.ndcg(one, np.array([3]), 2)[0] == pytest.approx(1 / (1 + 1 / np.log2(3)))
    assert metrics.ndcg(one, np.array([0]), 2)[0] == 0.0
    assert metrics.ndcg(np.zeros((0, 3), bool), np.zeros(0, int), 5).shape == (0,)


def test_k_of_one_is_the_least():
    assert score_rankings(HITS, np.array([5] * 3), POSITIVES, (1,))["prec@1"].tolist() == [1, 0, 0]
    assert metrics.precision(HITS, 1).tolist() == [1, 0, 0]
    for ks in ((), (0,), (5, 0)):
        with pytest.raises(ValueError, match="k must be at least 1"):
            score_rankings(HITS, np.array([5] * 3), POSITIVES, ks)
    with pytest.raises(ValueError, match=r"hits must be \[queries, ranks\]"):
        metrics.precision(HITS[0], 1)


def test_macro_accuracy_weighs_every_label_alike():
    assert metrics.macro_accuracy([3, 3, 3, 8], [3, 3, 0, 0]) == pytest.approx((2 / 3 + 0) / 2)
    with pytest.raises(ValueError, match="no products"):
        metrics.macro_accuracy([], [])
    assert metrics.macro_accuracy([4], [4]) == 1.0


def test_clusters_that_are_the_labels_score_one():
    label_N, cluster_N = np.array([0, 0, 1, 1]), np.array([7, 7, 3, 3])
    for score in (metrics.normalized_mutual_information, metrics.adjusted_rand_index, metrics.purity):
        assert score(label_N, cluster_N) == pytest.approx(1.0)
    assert metrics.purity(label_N, np.array([7, 7, 7, 7])) == 0.5
