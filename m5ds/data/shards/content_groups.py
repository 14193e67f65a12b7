"""Groups of products that share byte-equal media, before anything is written: no picture may lie in two splits.

Files of a size of their own are never opened; of the others the first 64 KiB are read, and the whole only where those
agree too. Shape letters: N products, F media files in catalogue order, K of these that may be alike.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m5ds.data.catalogue.records import CatalogueError
from m5ds.data.shards.shared_media import HASH_BYTES

_HEAD_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20


class MediaSizes:
    """Sizes of the catalogue's media, grown record by record: 16 bytes a file."""

    def __init__(self) -> None:
        self.size, self.product = array("q"), array("q")

    def add(self, product: int, sizes: Iterable[int]) -> None:
        """The files of the product of this number, which is larger than those before."""
        for size in sizes:
            self.size.append(size)
            self.product.append(product)


def group_by_content(
    group_N: NDArray[np.uint64],
    media: MediaSizes,
    paths_of: Callable[[int], list[Path]],
    *,
    placeholder_products: int,
) -> NDArray[np.uint64]:
    """Each product's group [N], groups united that share a content of at most `placeholder_products` products.

    The hash of a united group is the exclusive or of its groups' hashes, so it depends on nothing's order. Empty files
    unite nobody. `paths_of` gives a product's files in the order in which `media` has their sizes. Raises
    CatalogueError for a file that has gone since it was listed.
    """
    size_F = np.frombuffer(media.size, np.int64)
    product_F = np.frombuffer(media.product, np.int64)
    chosen_K = _alike(size_F[:, None], np.flatnonzero(size_F > 0))
    # One key a file: its size, and the hash of its head.
    key_F2 = np.zeros((len(size_F), 2), np.uint64)
    for file, path in _paths(chosen_K, product_F, paths_of):
        key_F2[file] = _hash(path, int(size_F[file]), _HEAD_BYTES)
    chosen_K = _alike(key_F2, chosen_K)
    for file, path in _paths(chosen_K[size_F[chosen_K] > _HEAD_BYTES], product_F, paths_of):
        key_F2[file] = _hash(path, int(size_F[file]), None)
    return _unite(group_N, key_F2, product_F, _alike(key_F2, chosen_K), placeholder_products)


def _alike(key_FW: NDArray, chosen_K: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the chosen files whose key another chosen one has, in ascending order."""
    _, number_K, times = np.unique(key_FW[chosen_K], axis=0, return_inverse=True, return_counts=True)
    return chosen_K[times[number_K.reshape(-1)] > 1]


def _paths(
    files: NDArray[np.int64], product_F: NDArray[np.int64], paths_of: Callable[[int], list[Path]]
) -> Iterator[tuple[int, Path]]:
    """Each file with its path; a product's files are looked up together."""
    product, first, listed = -1, 0, []
    for file in files.tolist():
        if product_F[file] != product:
            product = int(product_F[file])
            first, listed = int(np.searchsorted(product_F, product)), paths_of(product)
        yield file, listed[file - first]


def _hash(path: Path, size: int, limit: int | None) -> NDArray[np.uint64]:
    """Of the size and the first `limit` bytes (None: all)."""
    digest = hashlib.blake2b(str(size).encode() + b":", digest_size=HASH_BYTES)
    try:
        with path.open("rb") as file:
            left = size if limit is None else min(size, limit)
            while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise CatalogueError(f"{path}: cannot be read for --group-by-content ({error.strerror}); run again") from error
    return np.frombuffer(digest.digest(), np.uint64)


def _unite(
    group_N: NDArray[np.uint64],
    key_F2: NDArray[np.uint64],
    product_F: NDArray[np.int64],
    chosen_K: NDArray[np.int64],
    placeholder_products: int,
) -> NDArray[np.uint64]:
    groups, group_index_N = np.unique(group_N, return_inverse=True)
    sets = _DisjointSets(len(groups))
    pair_P3 = np.unique(np.column_stack([key_F2[chosen_K], product_F[chosen_K].astype(np.uint64)]), axis=0)
    edge = np.flatnonzero((np.diff(pair_P3[:, :2], axis=0) != 0).any(axis=1)) + 1
    for rows in np.split(pair_P3[:, 2].astype(np.int64), edge):
        if len(rows) > placeholder_products:
            continue
        members = group_index_N[rows].tolist()
        for other in members[1:]:
            sets.unite(members[0], other)
    root_G = np.array([sets.find(group) for group in range(len(groups))], np.int64)
    united_G = np.zeros(len(groups), np.uint64)
    np.bitwise_xor.at(united_G, root_G, groups)
    return united_G[root_G[group_index_N]]


class _DisjointSets:
    """Union-find over numbers, with path halving."""

    def __init__(self, count: int) -> None:
        self._parent = array("q", range(count))

    def find(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    def unite(self, first: int, second: int) -> None:
        one, other = self.find(first), self.find(second)
        self._parent[max(one, other)] = min(one, other)
