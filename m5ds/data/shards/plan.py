"""First pass over a catalogue: check every record, decide each product's split, shard and label. No media is read.

Checked records are spooled to one file of JSON lines, so that the second pass (shards.py) can take them in any order
whatever the catalogue's format was. In memory a product costs about 50 bytes. Shape letters: N products, G groups.
"""

import hashlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from m5ds.data.catalogue.records import CATEGORY_SEPARATOR, CatalogueError, CatalogueRecord, dumps, presence
from m5ds.data.shards.content_groups import MediaSizes, group_by_content
from m5ds.data.shards.manifest import SPLITS
from m5ds.kernels.common.philox import product_hash

_LARGE_SHARE = 0.1
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentGrouping:
    """`--group-by-content`: where the media lie, and how many products a content may have to group by it."""

    media_root: Path
    placeholder_products: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What goes where. Arrays are in catalogue order."""

    offset_N: NDArray[np.int64]
    """Byte offset of each product's line in the spool."""
    label_N: NDArray[np.int32]
    """Index into `categories`, -1 unknown."""
    shards: dict[str, list[NDArray[np.int64]]]
    """Split -> for each shard the products (catalogue positions) in the order they are written."""
    categories: tuple[str, ...]
    attributes: dict[str, int]
    spool_sha256: str
    """Of everything that decides the shards' bytes except the media's content: records, file sizes and times."""

    @property
    def num_products(self) -> int:
        return len(self.offset_N)


def make_plan(
    records: Iterable[CatalogueRecord],
    spool: Path,
    missing_list: Path,
    *,
    ratios: tuple[float, float, float],
    shard_products: int,
    seed: int,
    group_key: str,
    language: str | None,
    max_media: int | None,
    content: ContentGrouping | None = None,
) -> ShardPlan:
    """Check all records (ids do not repeat, group key and language exist), write `spool`, and plan the shards.

    `content`: products that share byte-equal media stay in one split too; None: only those of one group do.
    `missing_list` receives a JSON line for each listed file that does not exist. Raises CatalogueError.
    """
    scan = _Scan()
    media = MediaSizes()
    digest = hashlib.sha256()
    with spool.open("wb") as spooled, missing_list.open("w", encoding="utf-8") as missing:
        for record in records:
            line = (_spool_line(record, max_media) + "\n").encode()
            if content is not None:
                files = (file for listed in record.media.values() for file in listed[:max_media])
                media.add(len(scan.offset), (file.size for file in files))
            scan.add(record, spooled.tell(), seed)
            spooled.write(line)
            digest.update(line)
            for name, path in record.missing:
                missing.write(dumps({"id": record.id, "modality": name, "path": path}) + "\n")
            scan.saw_language |= language is not None and language in record.i18n
    num_products = len(scan.offset)
    if num_products == 0:
        raise CatalogueError("the catalogue holds no product")
    if group_key != "share_group" and not scan.saw_group:
        raise CatalogueError(f"no record has the field {group_key!r}; correct --group-key")
    if language is not None and not scan.saw_language:
        raise CatalogueError(f"no record has i18n in {language!r}; correct --language")
    _refuse_duplicates(scan, spool)
    group_N = np.frombuffer(scan.group, np.uint64)
    if content is not None:
        group_N = _united_groups(group_N, media, spool, np.frombuffer(scan.offset, np.int64), content)
    split_N = assign_splits(group_N, ratios, group_key)
    order = np.argsort(np.frombuffer(scan.order, np.uint64), kind="stable")
    category_N = np.frombuffer(scan.category, np.int32)
    categories, label_of = _rank_categories(scan.categories, category_N[split_N == 0])
    label_N = np.where(category_N < 0, -1, label_of[category_N]) if len(label_of) else category_N
    shards = {}
    for number, name in enumerate(SPLITS):
        products = order[split_N[order] == number]
        if len(products):
            shards[name] = np.array_split(products, -(-len(products) // shard_products))
    return ShardPlan(
        offset_N=np.frombuffer(scan.offset, np.int64),
        label_N=label_N.astype(np.int32),
        shards=shards,
        categories=categories,
        attributes=dict(Counter(dict(sorted(scan.attributes.items()))).most_common()),
        spool_sha256=digest.hexdigest(),
    )


def _united_groups(
    group_N: NDArray[np.uint64],
    media: MediaSizes,
    spool: Path,
    offset_N: NDArray[np.int64],
    content: ContentGrouping,
) -> NDArray[np.uint64]:
    """The groups after `--group-by-content`. Warns where contents chain a large part of the products together."""
    with spool.open("rb") as file:

        def paths_of(product: int) -> list[Path]:
            listed = read_spooled(file, offset_N[product])["media"].values()
            return [content.media_root / path for files in listed for path, *_ in files]

        found = group_by_content(group_N, media, paths_of, placeholder_products=content.placeholder_products)
    largest = int(np.unique(found, return_counts=True)[1].max())
    if largest > _LARGE_SHARE * len(found) and largest > int(np.unique(group_N, return_counts=True)[1].max()):
        _LOGGER.warning(
            "--group-by-content: %d of %d products hang together by media that they share and go into one split; a"
            " lower --placeholder-products (now %d) leaves common media out",
            largest,
            len(found),
            content.placeholder_products,
        )
    return found


def assign_splits(group_N: NDArray[np.uint64], ratios: tuple[float, float, float], group_key: str) -> NDArray[np.int8]:
    """The split (0, 1, 2) of each product from its group's keyed hash: groups in hash order, cut where ratios are met.

    Every split with a ratio above 0 gets at least one group; CatalogueError where there are fewer groups than splits.
    """
    _, group_index_N, size_G = np.unique(group_N, return_inverse=True, return_counts=True)
    wanted = [number for number, ratio in enumerate(ratios) if ratio > 0]
    if len(size_G) < len(wanted):
        raise CatalogueError(
            f"{len(size_G)} group(s) by {group_key!r} cannot fill {len(wanted)} splits;"
            " use another --group-key or set ratios to 0 with --ratios"
        )
    middle_G = (np.cumsum(size_G) - size_G / 2) / size_G.sum()
    bounds = [0, *np.searchsorted(middle_G, np.cumsum([ratios[i] for i in wanted])[:-1]).tolist(), len(size_G)]
    for i in range(1, len(wanted)):
        bounds[i] = min(max(bounds[i], bounds[i - 1] + 1), len(size_G) - (len(wanted) - i))
    split_G = np.empty(len(size_G), np.int8)
    for i, number in enumerate(wanted):
        split_G[bounds[i] : bounds[i + 1]] = number
    return split_G[group_index_N]


class _Scan:
    """Per-product arrays and vocabularies, grown record by record."""

    def __init__(self) -> None:
        self.offset, self.product = array("q"), array("q")
        self.order, self.group = array("Q"), array("Q")
        self.category = array("i")
        self.categories: dict[str, int] = {}
        self.attributes: Counter[str] = Counter()
        self.saw_group = False
        self.saw_language = False

    def add(self, record: CatalogueRecord, offset: int, seed: int) -> None:
        self.offset.append(offset)
        self.product.append(product_hash(record.id))
        self.order.append(keyed_hash(seed, "order", record.id))
        self.group.append(keyed_hash(seed, "group", record.group))
        self.saw_group |= record.has_group
        name = CATEGORY_SEPARATOR.join(record.category)
        self.category.append(self.categories.setdefault(name, len(self.categories)) if name else -1)
        self.attributes.update({key for key, _ in record.attributes})


def keyed_hash(seed: int, purpose: str, text: str) -> int:
    """A stable 64-bit unsigned hash, independent between seeds and purposes."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}:{text}".encode(), digest_size=8).digest(), "little")


def read_spooled(spool: IO[bytes], offset: int) -> dict[str, Any]:
    """The record whose line starts at that offset."""
    spool.seek(offset)
    return json.loads(spool.readline())


def _spool_line(record: CatalogueRecord, max_media: int | None) -> str:
    media = {
        name: [[file.path, file.size, file.mtime_ns] for file in files[:max_media]]
        for name, files in record.media.items()
    }
    return dumps(
        {
            "where": record.where,
            "id": record.id,
            "title": record.title,
            "description": record.description,
            "attributes": record.attributes,
            "category": record.category,
            "group": record.group,
            "present": presence(media, record.title, record.description, record.attributes),
            "media": media,
            "i18n": record.i18n,
        }
    )


def _refuse_duplicates(scan: _Scan, spool: Path) -> None:
    product_N = np.frombuffer(scan.product, np.int64)
    order = np.argsort(product_N, kind="stable")
    again = np.flatnonzero(np.diff(product_N[order]) == 0)
    if not len(again):
        return
    with spool.open("rb") as file:
        first, second = (read_spooled(file, scan.offset[order[at]]) for at in (again[0], again[0] + 1))
    if first["id"] != second["id"]:
        raise CatalogueError(
            f"{second['where']}: id {second['id']!r} has the same 64-bit hash as {first['id']!r} of {first['where']};"
            " rename one"
        )
    raise CatalogueError(
        f"{second['where']}: id {second['id']!r} is already taken by {first['where']}; ids must not repeat"
    )


def _rank_categories(categories: dict[str, int], train_category: NDArray[np.int32]) -> tuple[tuple[str, ...], NDArray]:
    """Names by frequency in train, then by name; and the rank of each number that the scan gave."""
    count = np.bincount(train_category[train_category >= 0], minlength=len(categories))
    names = sorted(categories, key=lambda name: (-count[categories[name]], name))
    rank = np.empty(len(names), np.int32)
    for label, name in enumerate(names):
        rank[categories[name]] = label
    return tuple(names), rank
