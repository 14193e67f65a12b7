"""Which categories a classifier is trained and tested on.

Shape letters: N products, C categories of the manifest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m5ds.cache import Cache
from m5ds.data.shards.reader import LOADED_INDICES, RawProduct, ShardIndex, ShardReader
from m5ds.kernels.common import philox


@dataclass(frozen=True, kw_only=True)
class ClassChoice:
    """The categories in use. Labels keep the manifest's numbers, so a head fits any run on the same shards."""

    count_C: NDArray[np.int64]
    """Training products of each category; 0 for those that are left out."""
    kept_C: NDArray[np.bool_]
    dropped: tuple[str, ...]
    """Names of categories that were left out for being rare."""
    names: tuple[str, ...] = ()
    """Of all categories; empty where nobody asks for them."""

    def apply(self, label_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The labels with those of left-out categories as -1."""
        return np.where((label_N >= 0) & self.kept_C[label_N], label_N, -1)


def read_labels(reader: ShardReader) -> NDArray[np.int64]:
    """Labels of a split's products in the shards' order, -1 where unknown."""
    parts = [reader.index(shard).table["label"].to_numpy() for shard in range(len(reader.shard_sizes))]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def drawn_labels(reader: ShardReader, fraction: float, seed: int) -> list[NDArray[np.bool_]]:
    """For each shard, which products' labels a classifier may learn from: labelled ones, each with this probability.

    A function of product and seed; a larger fraction draws the products of a smaller one and more.
    """
    drawn = []
    for shard in range(len(reader.shard_sizes)):
        table = reader.index(shard).table
        words_N = philox.random_words(
            seed=seed,
            draw=philox.EVALUATION_DRAW,
            product=torch.from_numpy(table["product"].to_numpy().copy()),
            stream=philox.Stream.LABEL_SHARE,
            element=0,
        )[0]
        kept_N = (words_N < philox.threshold(fraction)).numpy()
        drawn.append(kept_N & (table["label"].to_numpy() >= 0))
    return drawn


class SubsetReader(ShardReader):
    """The chosen products of another reader's split, as if its shards held no others."""

    def __init__(self, reader: ShardReader, kept: list[NDArray[np.bool_]]) -> None:
        """`kept`: for each shard, which of its products stay."""
        self.directory, self.split, self.manifest = reader.directory, reader.split, reader.manifest
        self._reader = reader
        self._rows = [np.flatnonzero(kept_N) for kept_N in kept]
        self._indices = Cache(LOADED_INDICES)

    @property
    def shard_sizes(self) -> list[int]:
        return [len(rows) for rows in self._rows]

    def _load_index(self, shard: int) -> ShardIndex:
        whole, rows = self._reader.index(shard), self._rows[shard]
        return replace(
            whole,
            table=whole.table.take(rows),
            present=[whole.present[row] for row in rows],
            text_chars=whole.text_chars[rows],
            table_chars=whole.table_chars[rows],
        )

    def read(self, shard: int, index: int) -> RawProduct:
        return self._reader.read(shard, int(self._rows[shard][index]))

    def close(self) -> None:
        self._reader.close()


def choose_classes(
    train_label_N: NDArray[np.int64],
    categories: tuple[str, ...],
    *,
    minimum: int,
    rare: str,
) -> ClassChoice:
    """The categories with at least `minimum` training products, by the policy `rare`: error, drop or keep.

    Only categories that occur in the training labels are looked at; one that only the test split has is `unseen`, and
    its products count as errors. `ValueError`: no label at all, rare categories under `error`, fewer than two left.
    """
    known_N = train_label_N[train_label_N >= 0]
    if not len(known_N):
        raise ValueError(
            f"labels absent: none of the {len(train_label_N)} training products has one; build the shards from a"
            " catalogue with `category`"
        )
    count_C = np.bincount(known_N, minlength=len(categories))
    rare_C = (count_C > 0) & (count_C < minimum)
    if rare == "error" and rare_C.any():
        names = [categories[c] for c in np.flatnonzero(rare_C)]
        raise ValueError(
            f"{len(names)} of {int((count_C > 0).sum())} categories have fewer than {minimum} training products (first:"
            f" {names[0]!r}); set classification.rare_classes=drop to leave their products out, or keep"
        )
    kept_C = ~rare_C if rare == "drop" else np.ones(len(categories), dtype=bool)
    left = int((count_C[kept_C] > 0).sum())
    if left < 2:
        lower = "; set classification.rare_classes=keep or lower min_class_products" if rare_C.any() else ""
        raise ValueError(
            f"classification needs at least two categories with training products, but {left} of"
            f" {int((count_C > 0).sum())} are left{lower}"
        )
    return ClassChoice(
        count_C=np.where(kept_C, count_C, 0),
        kept_C=kept_C,
        dropped=tuple(categories[c] for c in np.flatnonzero(~kept_C)),
        names=tuple(categories),
    )


UNSEEN_NAMES = "unseen_category_names"
"""The fact of a table that lists the tested categories without a training product."""
_MOST_NAMED = 3


def unseen_facts(label_N: NDArray[np.int64], seen_N: NDArray[np.bool_], names: Sequence[str]) -> dict[str, Any]:
    """Facts of tested products that nothing was taught the category of: how many, of how many categories, which.

    label_N: the tested labels, none below 0; seen_N: True where training held the product's category.
    """
    unseen = np.unique(label_N[~seen_N]).tolist()
    return {
        "tested_categories": len(np.unique(label_N)),
        "unseen_categories": len(unseen),
        "products_of_unseen_categories": int((~seen_N).sum()),
        UNSEEN_NAMES: [names[label] if label < len(names) else str(label) for label in unseen],
    }


def unseen_line(facts: Mapping[str, Any]) -> str:
    """The facts as one sentence; "" where every tested category was seen in training."""
    names = facts.get(UNSEEN_NAMES)
    if not names:
        return ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return (
        f"{len(names)} of {facts['tested_categories']} tested categories are unseen in training, with"
        f" {facts['products_of_unseen_categories']} of {facts['products']} products, all counted as errors:"
        f" {'; '.join(names[:_MOST_NAMED])}{more}. A coarser category_level leaves fewer"
    )
