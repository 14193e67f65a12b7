"""Byte-equal media in several splits: what a held-out product shares with training, file for file.

A member's content hash stands in its shard's index. Shards built before it had that column are read instead, but only
the members whose size another member has. Members without a byte are nobody's content.

Shape letters: F media files in the order of (content, shard, row), C contents, S shards.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m5ds.data.shards.manifest import MEMBER_HASHES, Manifest, ShardEntry, open_file, read_index

PLACEHOLDER_PRODUCTS = 100
"""A content of more products than this is taken for a placeholder ("no picture"): it says nothing of any of them."""
HASH_BYTES = 16
REMEDY = "tools/build_shards.py --group-by-content keeps products that share media in one split"


def content_hash(data: bytes) -> bytes:
    """What tells contents apart: BLAKE2b of 16 bytes, so that 10^12 media hold two alike by chance once in 10^14."""
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedContent:
    """One content and the first product of each split that has it."""

    modality: str
    num_products: int
    places: tuple[tuple[str, str, str], ...]
    """(split, product id, member's name)."""

    def __str__(self) -> str:
        return f"{self.modality}: " + " = ".join(f"{split} {name!r} {member}" for split, name, member in self.places)


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedMedia:
    """Contents that lie in more than one split."""

    num_contents: int
    num_products: int
    """Products of all splits that have one."""
    by_modality: dict[str, int]
    """Contents of each modality; a content of two modalities counts in both."""
    by_splits: dict[str, int]
    """`train+test` -> contents that lie in exactly these splits."""
    examples: tuple[SharedContent, ...]
    """The first few, in the shards' order of their first product."""
    num_placeholders: int
    """Contents of more than `placeholder_products` products that lie in several splits; not counted above."""
    placeholder_products: int
    placeholders: tuple[SharedContent, ...]
    """The first few of them, the most frequent first."""

    def lines(self) -> Iterator[str]:
        """What a tool prints; nothing where no content is shared."""
        if self.num_contents:
            split, kind = (
                ", ".join(f"{name} {count}" for name, count in counts.items())
                for counts in (self.by_splits, self.by_modality)
            )
            yield (
                f"{self.num_contents} byte-equal media in several splits ({kind}), in {self.num_products} products"
                f" ({split}); {REMEDY}"
            )
            yield from _listed(self.examples, self.num_contents)
        if self.num_placeholders:
            yield (
                f"{self.num_placeholders} more contents of over {self.placeholder_products} products each, in several"
                " splits: taken for placeholders, neither counted above nor kept together (--placeholder-products)"
            )
            yield from _listed(self.placeholders, self.num_placeholders)


def _listed(shown: tuple[SharedContent, ...], count: int) -> Iterator[str]:
    yield from (f"  {content.num_products} products, {content}" for content in shown)
    if count > len(shown):
        yield f"  and {count - len(shown)} more"


def find_shared_media(
    directory: str, manifest: Manifest, *, placeholder_products: int | None = None, most: int = 5
) -> SharedMedia:
    """Byte-equal media across the splits of a shard directory, at most `most` of them by name.

    `placeholder_products` None: the number that the shards were built with. Memory: 40 bytes a medium. Raises
    CorruptShardError for an index that is not what the manifest says.
    """
    if placeholder_products is None:
        placeholder_products = manifest.options.get("placeholder_products", PLACEHOLDER_PRODUCTS)
    entries = [(split, entry) for split, found in manifest.splits.items() for entry in found.shards]
    files = _sorted(_gather(directory, manifest, [entry for _, entry in entries]))
    split_names = list(manifest.splits)
    split_S = np.array([split_names.index(split) for split, _ in entries], np.int64)
    split_F, count = split_S[files["shard"]], len(files)
    if not count:
        return _report(directory, manifest, entries, files, np.empty((0, 5), np.int64), placeholder_products, most)
    new_content_F = np.ones(count, bool)
    new_content_F[1:] = (files["high"][1:] != files["high"][:-1]) | (files["low"][1:] != files["low"][:-1])
    new_product_F = new_content_F.copy()
    new_product_F[1:] |= (files["shard"][1:] != files["shard"][:-1]) | (files["row"][1:] != files["row"][:-1])
    start_C = np.flatnonzero(new_content_F)
    end_C = np.append(start_C[1:], count)
    # Shards are numbered split by split, so the first and last file of a content tell whether it lies in several.
    crossing_C = split_F[start_C] != split_F[end_C - 1]
    described_C5 = np.stack(
        [
            start_C,
            end_C,
            np.add.reduceat(new_product_F, start_C, dtype=np.int64),
            np.bitwise_or.reduceat(1 << split_F, start_C),
            np.bitwise_or.reduceat(1 << files["modality"].astype(np.int64), start_C),
        ],
        axis=1,
    )[crossing_C]
    return _report(directory, manifest, entries, files, described_C5, placeholder_products, most)


def _report(
    directory: str,
    manifest: Manifest,
    entries: list[tuple[str, ShardEntry]],
    files: NDArray[Any],
    described_C5: NDArray[np.int64],
    placeholder_products: int,
    most: int,
) -> SharedMedia:
    """`described_C5`: first file, end, products, splits and modalities (bits) of each content in several splits."""
    first_C = files[described_C5[:, 0]]
    described_C5 = described_C5[np.lexsort((first_C["member"], first_C["row"], first_C["shard"]))]
    is_placeholder_C = described_C5[:, 2] > placeholder_products
    told, placeholders = described_C5[~is_placeholder_C], described_C5[is_placeholder_C]
    placeholders = placeholders[np.argsort(-placeholders[:, 2], kind="stable")]
    products = {(int(file["shard"]), int(file["row"])) for start, end, *_ in told for file in files[start:end]}

    def names(bits: int, known: list[str]) -> list[str]:
        return [name for number, name in enumerate(known) if bits >> number & 1]

    split_bits, split_count = np.unique(told[:, 3], return_counts=True)
    by_splits = {
        "+".join(names(int(bits), list(manifest.splits))): int(count)
        for bits, count in sorted(zip(split_bits, split_count, strict=True), key=lambda item: (-item[1], item[0]))
    }
    by_modality = {
        name: int(count)
        for number, name in enumerate(manifest.modalities)
        if (count := (told[:, 4] >> number & 1).sum())
    }

    def shown(chosen_C5: NDArray[np.int64]) -> tuple[SharedContent, ...]:
        return tuple(
            SharedContent(
                modality="+".join(names(int(bits), list(manifest.modalities))),
                num_products=int(num_products),
                places=_places(directory, entries, files[start:end]),
            )
            for start, end, num_products, _, bits in chosen_C5[:most]
        )

    return SharedMedia(
        num_contents=len(told),
        num_products=len(products),
        by_modality=by_modality,
        by_splits=by_splits,
        examples=shown(told),
        num_placeholders=len(placeholders),
        placeholder_products=placeholder_products,
        placeholders=shown(placeholders),
    )


def _places(
    directory: str, entries: list[tuple[str, ShardEntry]], files: NDArray[Any]
) -> tuple[tuple[str, str, str], ...]:
    places: dict[str, tuple[str, str, str]] = {}
    for file in files:
        split, entry = entries[file["shard"]]
        if split not in places:
            (row,) = read_index(directory, entry).take([file["row"]]).to_pylist()
            places[split] = split, row["id"], row["members"][file["member"]]["name"]
    return tuple(places.values())


_FILE = np.dtype(
    [
        ("high", np.uint64),
        ("low", np.uint64),
        ("shard", np.int32),
        ("row", np.int32),
        ("member", np.int32),
        ("modality", np.int16),
        ("known", np.bool_),
        ("size", np.int64),
    ],
    align=False,
)
"""A media file: its content's hash (where `known`), and where it lies: shard, row of the index, number in the row."""


def _sorted(files: NDArray[Any]) -> NDArray[Any]:
    return files[np.lexsort((files["member"], files["row"], files["shard"], files["low"], files["high"]))]


def _gather(directory: str, manifest: Manifest, entries: list[ShardEntry]) -> NDArray[Any]:
    """Every media file with a byte in it, its hash known; those of shards without hashes only where sizes agree."""
    parts = [_of_index(manifest, number, read_index(directory, entry)) for number, entry in enumerate(entries)]
    files = np.concatenate([np.empty(0, _FILE), *parts])
    if files["known"].all():
        return files
    _, size_number_F, times = np.unique(files["size"], return_inverse=True, return_counts=True)
    files = files[times[size_number_F] > 1]
    for shard in np.unique(files["shard"][~files["known"]]).tolist():
        _read_hashes(directory, entries[shard], files, np.flatnonzero((files["shard"] == shard) & ~files["known"]))
    return files


def _of_index(manifest: Manifest, number: int, index: pa.Table) -> NDArray[Any]:
    number_of = {name: modality for modality, name in enumerate(manifest.modalities)}
    rows = index.column("members").to_pylist()
    hashes = index.column(MEMBER_HASHES).to_pylist() if MEMBER_HASHES in index.column_names else [None] * len(rows)
    found = []
    for row, (members, digests) in enumerate(zip(rows, hashes, strict=True)):
        for place, member in enumerate(members):
            parts = member["name"].split(".")
            if len(parts) != 4 or parts[1] not in number_of or not member["size"]:
                continue  # KEY.json, or an empty file
            high, low = (0, 0) if digests is None else np.frombuffer(digests[place], ">u8").tolist()
            known = digests is not None
            found.append((high, low, number, row, place, number_of[parts[1]], known, member["size"]))
    return np.array(found, _FILE)


def _read_hashes(directory: str, entry: ShardEntry, files: NDArray[Any], chosen: NDArray[np.int64]) -> None:
    members = read_index(directory, entry).column("members").to_pylist()
    with open_file(directory, entry.tar) as tar:
        for at in chosen.tolist():
            member = members[files["row"][at]][files["member"][at]]
            tar.seek(member["offset"])
            digest = content_hash(tar.read(member["size"]))
            files["high"][at], files["low"][at] = np.frombuffer(digest, ">u8").tolist()
            files["known"][at] = True
