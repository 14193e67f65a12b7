"""The manifest of a shard directory and the index of each shard: what is where, and whether it is what was written.

A shard directory is a local path or any fsspec URL. Layout: docs/architecture.md.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from m5ds.files import sha256

MANIFEST_VERSION = 1
SPLITS = ("train", "validation", "test")

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("product", pa.int64()),
        ("label", pa.int64()),
        ("present", pa.list_(pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("members", pa.list_(pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]))),
        ("title_chars", pa.int64()),
        ("text_chars", pa.int64()),
        ("table_pairs", pa.int64()),
        ("table_chars", pa.int64()),
        ("member_hashes", pa.list_(pa.binary(16))),
    ]
)
MEMBER_HASHES = "member_hashes"
"""`shared_media.content_hash` of each of `members`. Shards built before this column lack it and stay readable."""


class CorruptShardError(ValueError):
    """A shard that is not what its manifest says. The message names the shard and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard: a tar of `num_products` products and its index."""

    name: str
    """Path without suffix inside the shard directory: `train/000000`."""
    num_products: int
    bytes: int
    """Size of the tar."""
    sha256: str
    index_sha256: str

    @property
    def tar(self) -> str:
        return f"{self.name}.tar"

    @property
    def index(self) -> str:
        return f"{self.name}.index.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitEntry:
    """One split: its shards in order and how many products have which modalities."""

    num_products: int
    shards: tuple[ShardEntry, ...]
    presence_patterns: dict[str, int]
    """Present modalities in table order joined by `+` (`""`: none) -> products, most frequent first."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`. Its hash identifies the data in checkpoints."""

    version: int
    modalities: tuple[str, ...]
    splits: dict[str, SplitEntry]
    """Only the splits that were built, in the order train, validation, test."""
    categories: tuple[str, ...]
    """Category paths joined by ` / `, most frequent in train first; a label is an index into it. Categories that only
    validation or test have come last."""
    attributes: dict[str, int]
    """Attribute key -> products of all splits that have it, most frequent first."""
    source: dict[str, str]
    """`catalogue` (folder and file name) and `sha256`."""
    group_key: str
    options: dict[str, Any]
    """The options of tools/build_shards.py that shaped the shards."""
    missing_media: int
    """Listed files that were not there, kept out by `--missing-media absent`."""

    def to_bytes(self) -> bytes:
        """The bytes of manifest.json."""
        return (json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n").encode()

    @property
    def hash(self) -> str:
        """SHA-256 of manifest.json, hexadecimal."""
        return sha256(self.to_bytes())

    def split(self, name: str) -> SplitEntry:
        """That split; `ValueError` names those that exist."""
        if name not in self.splits:
            raise ValueError(f"the shards have no split {name!r}; they have {', '.join(self.splits)}")
        return self.splits[name]


def join(directory: str, name: str) -> str:
    """A file of the shard directory, which may be a path or an fsspec URL."""
    return f"{str(directory).rstrip('/')}/{name}"


def open_file(directory: str, name: str) -> IO[bytes]:
    """Open a file of the shard directory for reading bytes; FileNotFoundError where it does not exist."""
    return fsspec.open(join(directory, name), "rb").open()


def read_manifest(directory: str) -> Manifest:
    """Read DIR/manifest.json.

    `ValueError` where it is missing (a build that did not end has none), not JSON or of another version.
    """
    where = join(directory, "manifest.json")
    try:
        with open_file(directory, "manifest.json") as file:
            tree = json.loads(file.read())
    except FileNotFoundError:
        raise ValueError(f"{where}: no such file; build the shards with tools/build_shards.py") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); build the shards again with --overwrite") from error
    if not isinstance(tree, dict) or tree.get("version") != MANIFEST_VERSION:
        found = tree.get("version") if isinstance(tree, dict) else tree
        raise ValueError(f"{where}: version must be {MANIFEST_VERSION}, got {found!r}; build the shards again")
    try:
        return _from_tree(tree)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: malformed ({error!r}); build the shards again with --overwrite") from error


def _from_tree(tree: dict[str, Any]) -> Manifest:
    splits = {
        name: SplitEntry(
            num_products=split["num_products"],
            shards=tuple(ShardEntry(**entry) for entry in split["shards"]),
            presence_patterns=dict(split["presence_patterns"]),
        )
        for name, split in tree["splits"].items()
    }
    lists = {name: tuple(tree[name]) for name in ("modalities", "categories")}
    return Manifest(**{**tree, "splits": splits, **lists})


def read_index(directory: str, entry: ShardEntry) -> pa.Table:
    """The shard's index, checked against the manifest's hash. Columns: `INDEX_SCHEMA`. Raises CorruptShardError."""
    try:
        with open_file(directory, entry.index) as file:
            data = file.read()
    except FileNotFoundError:
        raise CorruptShardError(f"{join(directory, entry.index)}: missing; copy or build the shards again") from None
    if sha256(data) != entry.index_sha256:
        raise CorruptShardError(f"{join(directory, entry.index)}: bytes do not match the manifest; copy or build again")
    table = pq.read_table(pa.BufferReader(data))
    if table.num_rows != entry.num_products:
        raise CorruptShardError(
            f"{join(directory, entry.index)}: {table.num_rows} rows, the manifest says {entry.num_products} products"
        )
    return table


def verify_shard(directory: str, entry: ShardEntry, full: bool) -> None:
    """Raise CorruptShardError unless the shard's tar and index exist and the tar has the size of the manifest.

    `full` also reads both files and compares their SHA-256 (about 1 GB/s); without it only sizes are asked for.
    """
    if (size := _size(directory, entry.tar)) != entry.bytes:
        raise CorruptShardError(
            f"{join(directory, entry.tar)}: {size} bytes, the manifest says {entry.bytes}; copy or build again"
        )
    if not full:
        _size(directory, entry.index)
        return
    digest = hashlib.sha256()
    with open_file(directory, entry.tar) as file:
        for block in _blocks(file):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise CorruptShardError(f"{join(directory, entry.tar)}: bytes do not match the manifest; copy or build again")
    read_index(directory, entry)


def _size(directory: str, name: str) -> int:
    filesystem, path = fsspec.core.url_to_fs(join(directory, name))
    try:
        return filesystem.size(path)
    except FileNotFoundError:
        raise CorruptShardError(f"{join(directory, name)}: missing; copy or build the shards again") from None


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block
