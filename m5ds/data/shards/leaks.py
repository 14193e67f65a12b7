"""Which attributes of a catalogue give the category away by themselves.

Each key is a classifier of its own: a held-out product gets the category of the training products with the same value,
or with the nearest one where all of the key's training values are numbers. A key that is right far more often than the
commonest category belongs into the catalogue's `leaky_attributes` (docs/catalogue.md), or into the reader's mind.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from m5ds.data.shards.reader import RawProduct

Labelled = list[tuple[str, int]]
"""(value, label) of the products that have a key."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What one attribute says of the category."""

    key: str
    kind: str
    """`number` (nearest value) or `value` (the same one)."""
    num_products: int
    """Held-out labelled products that have it."""
    share: float
    """Of all held-out labelled products."""
    accuracy: float
    """Of the guesses for those that have it; a value that training never saw is a wrong guess."""
    num_seen: int
    """Of those that have it, how many are of a category that some training product is of."""
    seen_accuracy: float | None
    """Of the guesses for these; None where there are none."""
    commonest: float
    """Accuracy of always guessing the commonest category of the training products that have the key."""


def find_leaks(train: Iterable[RawProduct], held_out: Iterable[RawProduct]) -> list[Leak]:
    """Every attribute that both sides have, the one that names most held-out products' categories first.

    `ValueError`: no labelled product on one of the sides.
    """
    known, asked = _by_key(train), _by_key(held_out)
    for name, (count, *_) in (("train", known), ("held-out", asked)):
        if not count:
            raise ValueError(f"no {name} product has a label; build the shards from a catalogue with `category`")
    leaks = []
    for key, pairs in asked[1].items():
        taught = known[1].get(key)
        if not taught:
            continue
        numbers = _numbers([value for value, _ in taught])
        guesses = _by_value(taught, pairs) if numbers is None else _by_number(numbers, taught, pairs)
        labels = [label for _, label in pairs]
        right = [guess == label for guess, label in zip(guesses, labels, strict=True)]
        right_of_seen = [one for one, label in zip(right, labels, strict=True) if label in known[2]]
        commonest = _commonest(label for _, label in taught)
        leaks.append(
            Leak(
                key=key,
                kind="value" if numbers is None else "number",
                num_products=len(pairs),
                share=len(pairs) / asked[0],
                accuracy=float(np.mean(right)),
                num_seen=len(right_of_seen),
                seen_accuracy=float(np.mean(right_of_seen)) if right_of_seen else None,
                commonest=float(np.mean([label == commonest for label in labels])),
            )
        )
    return sorted(leaks, key=lambda leak: (-leak.accuracy * leak.num_products, leak.key))


def _by_key(products: Iterable[RawProduct]) -> tuple[int, dict[str, Labelled], set[int]]:
    """Number of labelled products, the values of each key, and the labels."""
    count, found, labels = 0, defaultdict(list), set()
    for product in products:
        if product.label < 0:
            continue
        count += 1
        labels.add(product.label)
        for key, value in dict(product.attributes).items():
            found[key].append((value, product.label))
    return count, found, labels


def _numbers(values: list[str]) -> list[float] | None:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _commonest(labels: Iterable[int]) -> int:
    """The most frequent label, of equals the lowest."""
    return min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))[0]


def _by_value(taught: Labelled, pairs: Labelled) -> list[int | None]:
    labels = defaultdict(list)
    for value, label in taught:
        labels[value].append(label)
    return [_commonest(labels[value]) if value in labels else None for value, _ in pairs]


def _by_number(numbers: list[float], taught: Labelled, pairs: Labelled) -> list[int | None]:
    number_N, label_N = np.array(numbers), np.array([label for _, label in taught])
    guesses: list[int | None] = []
    for value, _ in pairs:
        asked = _numbers([value])
        if asked is None:
            guesses.append(None)
            continue
        distance_N = np.abs(number_N - asked[0])
        guesses.append(_commonest(label_N[distance_N == distance_N.min()].tolist()))
    return guesses
