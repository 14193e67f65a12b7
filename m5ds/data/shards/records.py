"""The `KEY.json` records of a shard directory without its media: one small ranged read a product."""

import json
from collections.abc import Iterator
from typing import IO, Any

from m5ds.data.shards.manifest import CorruptShardError, Manifest, ShardEntry, join, open_file, read_index

Record = dict[str, Any]
"""`id, title, description, attributes, category, group, present, media, i18n` (docs/architecture.md)."""


def iterate_records(directory: str, manifest: Manifest, split: str, limit: int | None = None) -> Iterator[Record]:
    """The records of a split in shard order, at most `limit`. Shards are shuffled, so a head is a fair sample."""
    left = manifest.split(split).num_products if limit is None else limit
    for entry in manifest.split(split).shards:
        if left <= 0:
            return
        rows = read_index(directory, entry).column("members").to_pylist()[:left]
        left -= len(rows)
        with open_file(directory, entry.tar) as tar:
            for members in rows:
                yield read_record(directory, entry, tar, members)


def read_record(directory: str, entry: ShardEntry, tar: IO[bytes], members: list[dict[str, Any]]) -> Record:
    """The record of a product from its row's `members`. Raises CorruptShardError where there is none."""
    for member in members:
        if member["name"].endswith(".json"):
            tar.seek(member["offset"])
            try:
                return json.loads(tar.read(member["size"]))
            except ValueError as error:
                raise CorruptShardError(
                    f"{join(directory, entry.tar)}: {member['name']} is not JSON; copy or build the shards again"
                ) from error
    raise CorruptShardError(f"{join(directory, entry.index)}: a product without .json; build the shards again")


def sentences(record: Record, with_i18n: bool = False) -> Iterator[str]:
    """What a tokenizer is trained on: title, description, each attribute's key and value; optionally i18n's texts.

    Keys and values come by themselves and in one line: SentencePiece takes a word for a piece only if it has seen
    different things follow it, and a key by itself is always followed by the end.
    """
    yield record["title"]
    yield record["description"]
    yield " ".join(f"{key} {value}" for key, value in record["attributes"])
    for key, value in record["attributes"]:
        yield key
        yield value
    if with_i18n:
        for texts in record["i18n"].values():
            yield from texts.values()
