"""One shard against its manifest entry: hashes, the tar, the index and the records must all say the same."""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m5ds.data.catalogue.records import CATEGORY_SEPARATOR, presence
from m5ds.data.shards.manifest import (
    INDEX_SCHEMA,
    MEMBER_HASHES,
    CorruptShardError,
    Manifest,
    ShardEntry,
    join,
    open_file,
    read_index,
    verify_shard,
)
from m5ds.data.shards.records import Record, read_record
from m5ds.data.shards.shared_media import content_hash
from m5ds.kernels.common.philox import product_hash

_EMPTY = np.empty(0, np.int64)


@dataclass(kw_only=True)
class ShardFindings:
    """The faults of a shard and what the checks across shards need. Arrays are in index order, N readable products."""

    faults: list[str] = field(default_factory=list)
    readable: bool = True
    """False where a product could not be read, so that counts over the split mean nothing."""
    presence_patterns: Counter[str] = field(default_factory=Counter)
    attributes: Counter[str] = field(default_factory=Counter)
    product_N: NDArray[np.int64] = field(default_factory=lambda: _EMPTY)
    group_N: NDArray[np.int64] = field(default_factory=lambda: _EMPTY)
    """64-bit hash of each product's group."""
    label_N: NDArray[np.int64] = field(default_factory=lambda: _EMPTY)
    """Labels that are not -1."""


def lint_shard(directory: str, manifest: Manifest, entry: ShardEntry) -> ShardFindings:
    """All faults of one shard. Where the tar's hash is wrong its products are looked at too, to name the damaged."""
    found = ShardFindings()
    try:
        verify_shard(directory, entry, full=True)
    except CorruptShardError as error:
        found.faults.append(str(error))
    try:
        table = read_index(directory, entry)
    except CorruptShardError as error:
        if str(error) not in found.faults:
            found.faults.append(str(error))
        found.readable = False
        return found
    if MEMBER_HASHES not in table.column_names:  # built before it was there
        table = table.append_column(INDEX_SCHEMA.field(MEMBER_HASHES), pa.nulls(len(table), pa.list_(pa.binary(16))))
    if not table.schema.equals(INDEX_SCHEMA):
        found.faults.append(f"{join(directory, entry.index)}: columns are not those of docs/architecture.md")
        found.readable = False
        return found
    try:
        with open_file(directory, entry.tar) as tar:
            _lint_products(directory, manifest, entry, tar, table.to_pylist(), found)
    except FileNotFoundError:  # verify_shard has said so
        found.readable = False
    return found


def _lint_products(
    directory: str,
    manifest: Manifest,
    entry: ShardEntry,
    tar: IO[bytes],
    rows: list[dict[str, Any]],
    found: ShardFindings,
) -> None:
    where = join(directory, entry.tar)
    in_tar: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=tar, mode="r:") as archive:
            in_tar = {member.name: (member.offset_data, member.size) for member in _members(archive)}
    except tarfile.TarError as error:
        found.faults.append(f"{where}: not readable as a tar ({error}); copy or build the shards again")
        found.readable = False
        return
    label_of = {name: label for label, name in enumerate(manifest.categories)}
    products, groups, labels = [], [], []
    previous = ""
    for row in rows:
        here = f"{where}: product {row['id']!r}"
        if row["key"] <= previous or "." in row["key"]:
            found.faults.append(f"{here}: key {row['key']!r} does not ascend or has a dot")
        previous = row["key"]
        found.faults += [f"{here}: {fault}" for fault in (*_member_faults(row, in_tar), *_hash_faults(row, tar))]
        for member in row["members"]:
            in_tar.pop(member["name"], None)
        try:
            record = read_record(directory, entry, tar, row["members"])
            found.faults += [f"{here}: {fault}" for fault in _record_faults(row, record, label_of)]
            group = record["group"]
            found.presence_patterns["+".join(record["present"])] += 1
            found.attributes.update({key for key, _ in record["attributes"]})
        except CorruptShardError as error:
            found.faults.append(f"{here}: {error}")
            found.readable = False
            group = f"unreadable:{row['id']}"
        except (KeyError, TypeError, ValueError) as error:
            found.faults.append(f"{here}: {row['key']}.json is malformed ({error!r})")
            found.readable = False
            group = f"unreadable:{row['id']}"
        products.append(row["product"])
        groups.append(int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "little", signed=True))
        if 0 <= row["label"] < len(manifest.categories):
            labels.append(row["label"])
    found.faults += [f"{where}: member {name} is in no product of the index" for name in in_tar]
    found.product_N, found.group_N, found.label_N = (np.array(part, np.int64) for part in (products, groups, labels))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members, without keeping every one of them as the archive would."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def _member_faults(row: dict[str, Any], in_tar: dict[str, tuple[int, int]]) -> Iterator[str]:
    """The index's members must lie in the tar as it says, and `offset` and `size` must span exactly them."""
    if not row["members"]:
        yield "has no member"
        return
    if row[MEMBER_HASHES] is not None and len(row[MEMBER_HASHES]) != len(row["members"]):
        yield f"index column {MEMBER_HASHES} has {len(row[MEMBER_HASHES])} hashes for {len(row['members'])} members"
    for member in row["members"]:
        place = in_tar.get(member["name"])
        if place is None:
            yield f"declared member {member['name']} is not in the tar"
        elif place != (member["offset"], member["size"]):
            yield f"member {member['name']} lies at {place} in the tar, the index says otherwise"
    start = min(member["offset"] for member in row["members"]) - tarfile.BLOCKSIZE
    last = max(row["members"], key=lambda member: member["offset"])
    end = last["offset"] + -(-last["size"] // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if (row["offset"], row["size"]) != (start, end - start):
        yield "offset and size do not span its members"


def _hash_faults(row: dict[str, Any], tar: IO[bytes]) -> Iterator[str]:
    """The hashes by which byte-equal media are found must be those of the media; records are checked by their text."""
    for member, content in zip(row["members"], row[MEMBER_HASHES] or (), strict=False):
        if member["name"] == f"{row['key']}.json":
            continue
        tar.seek(member["offset"])
        if content_hash(tar.read(member["size"])) != content:
            yield f"index column {MEMBER_HASHES} is not the hash of {member['name']}"


def _record_faults(row: dict[str, Any], record: Record, label_of: dict[str, int]) -> Iterator[str]:
    """The index's columns must be what the record says, and the record must be true to its members."""
    key = row["key"]
    listed = {name for names in record["media"].values() for name in names}
    members = {member["name"] for member in row["members"]} - {f"{key}.json"}
    for name in sorted(listed - members):
        yield f"declared member {name} is not in the index"
    for name in sorted(members - listed):
        yield f"member {name} is not declared"
    present = presence(record["media"], record["title"], record["description"], record["attributes"])
    if record["present"] != present:
        yield f"declares {'+'.join(record['present'])} but holds {'+'.join(present)}"
    category = CATEGORY_SEPARATOR.join(record["category"])
    expected = {
        "id": record["id"],
        "product": product_hash(record["id"]),
        "label": label_of.get(category, -1),
        "present": record["present"],
        "title_chars": len(record["title"]),
        "text_chars": len(record["title"]) + len(record["description"]),
        "table_pairs": len(record["attributes"]),
        "table_chars": sum(len(name) + len(value) for name, value in record["attributes"]),
    }
    for column, value in expected.items():
        if row[column] != value:
            yield f"index column {column} is {row[column]!r}, its record says {value!r}"
