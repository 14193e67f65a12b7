"""Categories at a level of their tree, for tasks whose leaves are too many or too rare.

A category's path is cut to its first `level` names; a path that is shorter stays whole and is a class of its own, so
that no product loses its label. Shape letters: N products, C categories of the manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m5ds.data.catalogue.records import CATEGORY_SEPARATOR
from m5ds.data.shards.reader import RawProduct

Level = int | str
"""Number of names of the path, or `leaf`: all of them."""
LEAF = "leaf"


@dataclass(frozen=True, kw_only=True)
class CategoryLevel:
    """The classes of a level and which of them each category of the manifest is in."""

    level: Level
    names: tuple[str, ...]
    """Paths of the classes, in the order in which the manifest first names one of their categories."""
    number_C: NDArray[np.int64]
    """Class of each category."""

    @classmethod
    def of(cls, categories: Sequence[str], level: Level) -> "CategoryLevel":
        """`ValueError` for a level that no path reaches."""
        if level == LEAF:
            return cls(level=level, names=tuple(categories), number_C=np.arange(len(categories)))
        paths = [name.split(CATEGORY_SEPARATOR) for name in categories]
        deepest = max(map(len, paths), default=1)
        if not isinstance(level, int) or not 1 <= level <= deepest:
            raise ValueError(
                f"category level {level}: must be {LEAF} or between 1 and {deepest}, the longest path of these shards"
            )
        cut = [CATEGORY_SEPARATOR.join(path[:level]) for path in paths]
        number = {name: place for place, name in enumerate(dict.fromkeys(cut))}
        return cls(level=level, names=tuple(number), number_C=np.array([number[name] for name in cut], np.int64))

    def apply(self, label_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class numbers of labels of the manifest; -1 stays -1."""
        if not len(self.number_C):
            return np.full(len(label_N), -1)
        return np.where(label_N < 0, -1, self.number_C[label_N])

    def relabel(self, product: RawProduct) -> RawProduct:
        """The product with its class in the place of its label."""
        return replace(product, label=int(self.apply(np.array([product.label]))[0]))


def parse_level(text: str) -> Level:
    """What a command line says: `leaf` or a number. `ValueError` for anything else."""
    if text == LEAF:
        return LEAF
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--category-level must be {LEAF} or a number from 1 on, got {text!r}")
    return int(text)
