"""Every promise of a shard directory, checked against its bytes. A fault is one line naming the file and the product.

Memory: one shard's index, and 16 bytes a product for the checks across splits. Shape letter: N products.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import PurePosixPath

import fsspec
import numpy as np
from numpy.typing import NDArray

from m5ds.data.shards.lint_shard import ShardFindings, lint_shard
from m5ds.data.shards.manifest import Manifest, ShardEntry, SplitEntry, join, open_file, read_index, read_manifest
from m5ds.data.shards.records import Record, read_record
from m5ds.data.shards.shared_media import find_shared_media


def lint_shards(directory: str) -> Iterator[str]:
    """Yield one line per fault; nothing where all is well. `ValueError` where there is no readable manifest."""
    manifest = read_manifest(directory)
    where = join(directory, "manifest.json")
    across = _AcrossSplits(directory)
    attributes: Counter[str] = Counter()
    all_readable = True
    for name, split in manifest.splits.items():
        patterns: Counter[str] = Counter()
        label_count = np.zeros(len(manifest.categories), np.int64)
        readable = True
        for entry in split.shards:
            found = lint_shard(directory, manifest, entry)
            yield from found.faults
            readable &= found.readable
            patterns += found.presence_patterns
            attributes += found.attributes
            label_count += np.bincount(found.label_N, minlength=len(label_count))
            across.add(name, entry, found)
        if readable:
            yield from _split_faults(where, name, split, patterns)
            if name == "train" and (np.diff(label_count) > 0).any():
                yield f"{where}: categories are not ordered by their frequency in train"
        all_readable &= readable
    if all_readable and attributes != Counter(manifest.attributes):
        yield f"{where}: attributes are not those of the products"
    yield from across.faults()
    if all_readable and manifest.options.get("group_by_content"):
        shared = find_shared_media(directory, manifest)
        if shared.num_contents:
            yield f"{where}: group_by_content, but {next(shared.lines()).partition(';')[0]}, first {shared.examples[0]}"
    yield from _strays(directory, manifest)


def _split_faults(where: str, name: str, split: SplitEntry, patterns: Counter[str]) -> Iterator[str]:
    if patterns.total() != split.num_products:
        yield f"{where}: {name} says {split.num_products} products, its shards hold {patterns.total()}"
    if patterns != Counter(split.presence_patterns):
        yield f"{where}: presence patterns of {name} are not those of its products"


class _AcrossSplits:
    """Hashes of ids and groups of all products, and where each product is."""

    def __init__(self, directory: str):
        self._directory = directory
        self._shards: list[tuple[str, ShardEntry, NDArray[np.int64]]] = []
        self._product: list[NDArray[np.int64]] = []
        self._group: dict[str, list[NDArray[np.int64]]] = {}

    def add(self, split: str, entry: ShardEntry, found: ShardFindings) -> None:
        self._shards.append((split, entry, found.group_N))
        self._product.append(found.product_N)
        self._group.setdefault(split, []).append(found.group_N)

    def faults(self) -> Iterator[str]:
        product_N = np.concatenate(self._product)
        product, count = np.unique(product_N, return_counts=True)
        start = np.cumsum([0, *(len(part) for part in self._product)])
        for value in product[count > 1].tolist():
            places = np.flatnonzero(product_N == value)[:2]
            shards = np.searchsorted(start, places, side="right") - 1
            (_, first, _), (_, second, _) = (self._shards[shard] for shard in shards)
            record = self._record(second, int(places[1] - start[shards[1]]))
            yield f"{join(self._directory, second.tar)}: product {record['id']!r} is also in {first.tar}"
        groups = {split: np.unique(np.concatenate(parts)) for split, parts in self._group.items()}
        for one, other in combinations(groups, 2):
            for value in np.intersect1d(groups[one], groups[other]).tolist():
                entry, row = self._first(other, value)
                record = self._record(entry, row)
                yield (
                    f"{join(self._directory, entry.tar)}: product {record['id']!r}: its group {record['group']!r}"
                    f" is in {one} and in {other}"
                )

    def _first(self, split: str, group: int) -> tuple[ShardEntry, int]:
        return next(
            (entry, int((group_N == group).argmax()))
            for name, entry, group_N in self._shards
            if name == split and group in group_N
        )

    def _record(self, entry: ShardEntry, row: int) -> Record:
        members = read_index(self._directory, entry).column("members")[row].as_py()
        with open_file(self._directory, entry.tar) as tar:
            return read_record(self._directory, entry, tar, members)


def _strays(directory: str, manifest: Manifest) -> Iterator[str]:
    """Shards that the manifest does not name would be read by other tools' globs."""
    filesystem, root = fsspec.core.url_to_fs(directory)
    known = {name for split in manifest.splits.values() for entry in split.shards for name in (entry.tar, entry.index)}
    for pattern in ("*/*.tar", "*/*.parquet", "*/*.part"):
        for path in sorted(filesystem.glob(f"{root.rstrip('/')}/{pattern}")):
            name = "/".join(PurePosixPath(path).parts[-2:])
            if name not in known:
                yield f"{join(directory, name)}: not in the manifest; remove it or build the shards again"
