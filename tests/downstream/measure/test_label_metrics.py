"""Classification and clustering metrics against scikit-learn, frequency groups against their rules."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from m5ds.downstream.measure import metrics
from m5ds.downstream.measure.frequency import SHARES, FrequencyRule, frequency_group, split_by_frequency


@pytest.mark.parametrize("seed", range(5))
def test_macro_accuracy_equals_scikit_learns_balanced_accuracy(seed):
    random = np.random.default_rng(seed)
    label_N = random.integers(0, 7, 50)
    predicted_N = np.where(random.random(50) < 0.5, label_N, random.integers(0, 9, 50))
    theirs = sklearn_metrics.recall_score(label_N, predicted_N, labels=np.unique(label_N), average="macro")
    assert abs(metrics.macro_accuracy(label_N, predicted_N) - theirs) < 1e-9
    assert abs(metrics.accuracy(label_N, predicted_N) - (label_N == predicted_N).mean()) < 1e-12


@pytest.mark.parametrize("k", [1, 3, 20])
def test_top_k_equals_scikit_learn_without_ties_and_prefers_low_classes_with_them(k):
    random = np.random.default_rng(k)
    label_N, score_NC = random.integers(0, 6, 40), random.random((40, 6))
    if k < 6:
        theirs = sklearn_metrics.top_k_accuracy_score(label_N, score_NC, k=k, labels=np.arange(6))
        assert abs(metrics.top_k_correct(label_N, score_NC, k).mean() - theirs) < 1e-9
    tied = metrics.top_k_correct(np.arange(6), np.zeros((6, 6)), k)
    assert tied.tolist() == [1.0] * min(k, 6) + [0.0] * max(0, 6 - k)


def test_purity_follows_its_definition():
    label_N = np.array([0, 0, 1, 1, 1, 2])
    cluster_N = np.array([5, 5, 5, 7, 7, 7])
    assert metrics.purity(label_N, cluster_N) == pytest.approx((2 + 2) / 6)
    assert metrics.purity(label_N, np.zeros(6)) == 0.5
    assert metrics.purity(label_N, np.arange(6)) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_nmi_and_ari_follow_their_definitions(seed):
    """Written out from the contingency table, so that a change of scikit-learn's defaults is noticed."""
    random = np.random.default_rng(seed)
    label_N, cluster_N = random.integers(0, 4, 60), random.integers(0, 5, 60)
    table = np.zeros((4, 5))
    np.add.at(table, (label_N, cluster_N), 1 / 60)

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    rows, columns = table.sum(1), table.sum(0)
    mutual = entropy(rows) + entropy(columns) - entropy(table)
    assert (
        abs(metrics.normalized_mutual_information(label_N, cluster_N) - 2 * mutual / (entropy(rows) + entropy(columns)))
        < 1e-9
    )

    def pairs(n):
        return (n * (n - 1) / 2).sum()

    index, a, b = pairs(table * 60), pairs(rows * 60), pairs(columns * 60)
    expected = a * b / pairs(np.array([60.0]))
    assert abs(metrics.adjusted_rand_index(label_N, cluster_N) - (index - expected) / ((a + b) / 2 - expected)) < 1e-9


def test_counts_rule_follows_its_thresholds():
    assert frequency_group(np.array([101, 100, 20, 19, 0])).tolist() == ["head", "medium", "medium", "tail", "unseen"]


def test_shares_rule_gives_half_of_the_products_to_head_and_a_tenth_to_tail():
    count_C = np.array([50, 20, 20, 4, 3, 3, 0])
    assert frequency_group(count_C, SHARES).tolist() == ["head", "medium", "medium", "tail", "tail", "tail", "unseen"]
    assert frequency_group(np.array([5]), SHARES).tolist() == ["head"]


def test_breakdown_covers_every_labelled_product_once():
    random = np.random.default_rng(0)
    train_label = np.minimum(random.geometric(0.2, 500) - 1, 30)
    label_N = random.integers(-1, 32, 100)
    groups = split_by_frequency(np.arange(100.0), label_N, train_label, FrequencyRule(head=60, tail=10))
    assert list(groups) == [name for name in ("head", "medium", "tail", "unseen") if name in groups]
    assert sorted(np.concatenate(list(groups.values()))) == np.flatnonzero(label_N >= 0).tolist()
    assert (np.bincount(train_label, minlength=33)[label_N[groups["head"].astype(int)]] > 60).all()


def test_frequency_of_unlabelled_training_data_is_refused():
    with pytest.raises(ValueError, match="labels absent"):
        split_by_frequency(np.ones(2), np.array([0, 1]), np.array([-1, -1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "rank"}, "counts or shares"),
        ({"head": 1, "tail": 2}, "tail <= head"),
        ({"by": "shares", "head": 0.9, "tail": 0.2}, "add up"),
    ],
)
def test_impossible_frequency_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FrequencyRule(**options)
