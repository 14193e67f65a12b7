"""Head, medium and tail at their boundaries."""

import numpy as np
import pytest

from m5ds.downstream.measure.frequency import COUNTS, SHARES, FrequencyRule, frequency_group, split_by_frequency


def groups(counts, rule=COUNTS):
    return frequency_group(np.array(counts), rule).tolist()


def test_the_rules_have_the_documented_thresholds():
    assert (COUNTS.by, COUNTS.head, COUNTS.tail) == ("counts", 100, 20)
    assert (SHARES.by, SHARES.head, SHARES.tail) == ("shares", 0.5, 0.1)


def test_counts_above_the_one_number_are_head_and_below_the_other_tail():
    assert groups([6, 5, 4, 3, 2, 1, 0], FrequencyRule(head=5, tail=3)) == [
        *("head", "medium", "medium", "medium", "tail", "tail", "unseen")
    ]
    assert groups([1, 0], FrequencyRule(head=0, tail=0)) == ["head", "unseen"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Half of 100 products is reached exactly: the next class is not head. A tenth is left exactly: it is tail.
        ([50, 40, 10], ["head", "medium", "tail"]),
        ([49, 41, 10], ["head", "head", "tail"]),  # the class that crosses half is head
        ([50, 39, 11], ["head", "medium", "medium"]),  # the class that crosses the tenth is medium
        ([50, 41, 9], ["head", "medium", "tail"]),
        ([10, 50, 40], ["tail", "head", "medium"]),  # whatever their order
        ([95, 5], ["head", "tail"]),
        ([0, 0], ["unseen", "unseen"]),
        ([60, 0, 40], ["head", "unseen", "medium"]),
    ],
)
def test_shares_are_counted_from_the_most_frequent_class(counts, expected):
    assert groups(counts, SHARES) == expected


def test_of_equally_frequent_classes_the_lower_number_comes_first():
    assert groups([5, 5], FrequencyRule(by="shares", head=0.5, tail=0.5)) == ["head", "tail"]


def test_rules_at_their_limits_are_accepted():
    for options in (
        {"head": 20, "tail": 20},
        {"head": 0, "tail": 0},
        {"by": "shares", "head": 0.5, "tail": 0.5},
        {"by": "shares", "head": 0.0, "tail": 0.0},
    ):
        FrequencyRule(**options)
    for options in (
        {"tail": -1},
        {"head": 19},
        {"by": "shares", "head": -0.1, "tail": 0.1},
        {"by": "shares", "head": 0.1, "tail": -0.1},
        {"by": "shares", "head": 0.6, "tail": 0.5},
    ):
        with pytest.raises(ValueError, match="frequency rule"):
            FrequencyRule(**options)


def test_values_are_split_by_their_classes_and_unknown_labels_are_in_no_group():
    train = np.array([0] * 6 + [1] * 4 + [2] * 2 + [-1] * 50)
    rule = FrequencyRule(head=5, tail=3)
    values, label = np.arange(7.0), np.array([2, 0, -1, 3, 1, 0, 5])
    found = split_by_frequency(values, label, train, rule)
    assert {name: part.tolist() for name, part in found.items()} == {
        "head": [1.0, 5.0],
        "medium": [4.0],
        "tail": [0.0],
        "unseen": [3.0, 6.0],
    }
    assert list(found) == ["head", "medium", "tail", "unseen"]
    few = split_by_frequency(np.ones(1), np.array([1]), train, rule)
    assert list(few) == ["medium"]
    assert split_by_frequency(np.ones(1), np.array([0]), np.array([0] * 101 + [-1])).keys() == {"head"}
