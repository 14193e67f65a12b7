"""Products out of shards: the index says where each member lies, one ranged read fetches a product.

No tar is parsed. Layout of a shard directory: docs/architecture.md.
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from m5ds.cache import Cache
from m5ds.data.shards import manifest as manifests
from m5ds.data.shards.manifest import CorruptShardError, ShardEntry

_RETRIES = 3
_FIRST_PAUSE_SECONDS = 0.2
_VERIFYING_THREADS = 16
_OPEN_FILES = 64
LOADED_INDICES = 64
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Media:
    """One file of a product as it was catalogued: encoded media, or a `.npy` / `.npz` of precomputed features."""

    name: str
    """The member's name in the tar: KEY.image.0.jpg."""
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RawProduct:
    """A product as its shard holds it, nothing decoded."""

    id: str
    product: int
    """philox.product_hash(id)."""
    title: str
    description: str
    attributes: list[tuple[str, str]]
    category: list[str]
    label: int
    """Index into the manifest's categories, -1 where unknown."""
    present: frozenset[str]
    """Modalities that the product declares."""
    media: dict[str, list[Media]]
    """Files of each present modality that has files, in the catalogue's order."""
    group: str = ""
    """Products of one group share a picture or clip, or are one instance; `id:ID` where the catalogue names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """Columns of a shard's index that the loader plans with, one row a product."""

    table: pa.Table
    present: list[frozenset[str]]
    text_chars: np.ndarray
    table_chars: np.ndarray


class ShardReader:
    """Random access to the products of one split. Safe to share among threads.

    Transient I/O errors are retried and then raised: a product skipped for them would make the run irreproducible.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str, verify: Literal["size", "full"] = "size") -> None:
        """`directory`: a local path or an fsspec URL. `verify="full"` also compares the SHA-256 of every shard.

        Raises ValueError for a directory without a manifest or without the split, CorruptShardError for a shard that is
        missing or differs from the manifest.
        """
        self.directory = os.fspath(directory)
        self.split = split
        self.manifest = manifests.read_manifest(self.directory)
        self.shards = self.manifest.split(split).shards
        with ThreadPoolExecutor(_VERIFYING_THREADS) as pool:
            # Thousands of shards behind a URL would take minutes one after another.
            list(pool.map(lambda shard: self._verify(shard, full=verify == "full"), self.shards))
        self._indices: Cache[int, ShardIndex] = Cache(LOADED_INDICES)
        self._files: Cache[int, _RangedFile] = Cache(_OPEN_FILES)

    def _verify(self, shard: ShardEntry, full: bool) -> None:
        _retried(lambda: manifests.verify_shard(self.directory, shard, full=full))

    @property
    def shard_sizes(self) -> list[int]:
        """Products of each shard."""
        return [shard.num_products for shard in self.shards]

    @property
    def num_products(self) -> int:
        return sum(self.shard_sizes)

    def index(self, shard: int) -> ShardIndex:
        """The shard's index, read once and kept while among the last used. Raises CorruptShardError."""
        return self._indices.get(shard, lambda: self._load_index(shard))

    def _load_index(self, shard: int) -> ShardIndex:
        table = _retried(lambda: manifests.read_index(self.directory, self.shards[shard]))
        return ShardIndex(
            table=table,
            present=[frozenset(names) for names in table["present"].to_pylist()],
            text_chars=table["text_chars"].to_numpy(),
            table_chars=table["table_chars"].to_numpy(),
        )

    def read(self, shard: int, index: int) -> RawProduct:
        """One product. Raises CorruptShardError where its bytes are not what the index declares."""
        rows = self.index(shard).table
        row = {
            name: rows[name][index].as_py() for name in ("key", "id", "product", "label", "offset", "size", "members")
        }
        span = self._read_span(shard, row["offset"], row["size"])
        members = {}
        for member in row["members"]:
            start = member["offset"] - row["offset"]
            if start < 0 or start + member["size"] > len(span):
                raise self._corrupt(shard, f"{member['name']} lies outside the bytes of product {row['id']!r}")
            members[member["name"]] = span[start : start + member["size"]]
        return self._assemble(shard, row, members)

    def close(self) -> None:
        """Close the open files, each when the last thread that reads it lets go."""
        self._files.clear()

    def _read_span(self, shard: int, offset: int, size: int) -> bytes:
        def read() -> bytes:
            path = manifests.join(self.directory, self.shards[shard].tar)
            file = self._files.get(shard, lambda: _RangedFile(path))
            return file.read(offset, size)

        try:
            span = _retried(read)
        except FileNotFoundError:
            raise self._corrupt(shard, "is missing") from None
        if len(span) != size:
            raise self._corrupt(shard, f"ends before byte {offset + size}")
        return span

    def _assemble(self, shard: int, row: dict, members: dict[str, bytes]) -> RawProduct:
        name = f"{row['key']}.json"
        if name not in members:
            raise self._corrupt(shard, f"product {row['id']!r} has no member {name}")
        try:
            record = json.loads(members[name])
            declared = {modality: list(names) for modality, names in record["media"].items()}
            product = RawProduct(
                id=record["id"],
                product=row["product"],
                title=record["title"],
                description=record["description"],
                attributes=[(key, value) for key, value in record["attributes"]],
                category=record["category"],
                label=row["label"],
                present=frozenset(record["present"]),
                media={
                    modality: [Media(member, members[member]) for member in names]
                    for modality, names in declared.items()
                    if names
                },
                group=record["group"],
            )
        except KeyError as error:
            raise self._corrupt(
                shard, f"product {row['id']!r} declares {error} and the shard does not hold it"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise self._corrupt(shard, f"member {name} is not a product record ({error})") from error
        if product.id != row["id"]:
            raise self._corrupt(shard, f"member {name} is product {product.id!r}, the index says {row['id']!r}")
        return product

    def _corrupt(self, shard: int, what: str) -> CorruptShardError:
        where = manifests.join(self.directory, self.shards[shard].tar)
        return CorruptShardError(f"{where}: {what}; check it with tools/lint_shards.py and copy or build it again")


class _RangedFile:
    """Reads byte ranges of one file: `pread` for a local path, a fresh ranged request for a URL."""

    def __init__(self, path: str) -> None:
        self._filesystem, self._path = fsspec.core.url_to_fs(path)
        self._descriptor = None
        if isinstance(self._filesystem, LocalFileSystem):
            self._descriptor = os.open(self._path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        if self._descriptor is None:
            return self._filesystem.cat_file(self._path, start=offset, end=offset + size)
        parts = []
        while size > 0 and (part := os.pread(self._descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        # A file dropped from the cache may still be read by another thread: it closes when the last reader lets go.
        self.close()


def _retried(action: Callable[[], Value]) -> Value:
    """The action's value; OSErrors that may pass are retried with growing pauses, then raised."""
    for attempt in range(_RETRIES):
        try:
            return action()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
            raise
        except OSError:
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
    return action()
