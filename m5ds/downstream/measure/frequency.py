"""Head, medium and tail classes by how often they occur in training.

Two rules: `counts` (more than 100 training products are head, fewer than 20 tail: Liu et al., "Large-scale long-tailed
recognition in an open world", CVPR 2019) and `shares` for small sets (the most frequent classes that together hold half
of the training products are head, the rarest that hold a tenth are tail). Classes without a training product are
`unseen`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = ("head", "medium", "tail", "unseen")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrequencyRule:
    """Where head ends and tail begins."""

    by: str = "counts"
    head: float = 100
    """`counts`: a head class has more products than this. `shares`: share of products in head classes."""
    tail: float = 20
    """`counts`: a tail class has fewer products than this. `shares`: share of products in tail classes."""

    def __post_init__(self) -> None:
        if self.by not in ("counts", "shares"):
            raise ValueError(f"frequency rule must be counts or shares, got {self.by!r}")
        if self.by == "counts" and not 0 <= self.tail <= self.head:
            raise ValueError(f"frequency rule: need 0 <= tail <= head, got tail {self.tail}, head {self.head}")
        if self.by == "shares" and (min(self.head, self.tail) < 0 or self.head + self.tail > 1):
            raise ValueError(f"frequency rule: shares must add up to at most 1, got {self.head} and {self.tail}")


COUNTS = FrequencyRule()
SHARES = FrequencyRule(by="shares", head=0.5, tail=0.1)


def frequency_group(count_C: NDArray[np.int64], rule: FrequencyRule = COUNTS) -> NDArray[np.str_]:
    """The group's name of each class, from its number of training products. A class is whole in one group."""
    count_C = np.asarray(count_C, dtype=np.int64)
    group_C = np.full(len(count_C), "medium")
    if rule.by == "counts":
        group_C[count_C > rule.head] = "head"
        group_C[count_C < rule.tail] = "tail"
    else:
        order = np.argsort(-count_C, kind="stable")
        total = max(1, int(count_C.sum()))
        before = (count_C[order].cumsum() - count_C[order]) / total
        group_C[order[before >= 1 - rule.tail]] = "tail"
        group_C[order[before < rule.head]] = "head"
    group_C[count_C == 0] = "unseen"
    return group_C


def split_by_frequency(
    values_N: NDArray[Any],
    label_N: NDArray[np.int64],
    train_label: NDArray[np.int64],
    rule: FrequencyRule = COUNTS,
) -> dict[str, NDArray[np.float64]]:
    """The values of the products of each group that has any, by name in the order head, medium, tail, unseen.

    `train_label`: labels of all training products (-1 ignored). Products whose own label is unknown are in no group.
    """
    if (train_label < 0).all():
        raise ValueError("labels absent: no training product has a label, so classes have no frequency")
    num_classes = int(np.concatenate([label_N, train_label]).max()) + 1
    group_C = frequency_group(np.bincount(train_label[train_label >= 0], minlength=num_classes), rule)
    known = label_N >= 0
    group_N = np.where(known, group_C[label_N], "")
    return {name: np.asarray(values_N)[group_N == name] for name in NAMES if (group_N == name).any()}
