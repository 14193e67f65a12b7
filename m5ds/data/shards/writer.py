"""One shard: a WebDataset tar and its index, written under temporary names and renamed when whole.

The bytes depend on the products alone: fixed owner and time in the tar, one order of members. One product's media is in
memory at a time.
"""

import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
from webdataset import TarWriter

from m5ds import modality
from m5ds.data.catalogue.formats import FEATURE_SUFFIXES
from m5ds.data.catalogue.records import CatalogueError, dumps, presence
from m5ds.data.shards.manifest import INDEX_SCHEMA, MEMBER_HASHES, ShardEntry
from m5ds.data.shards.shared_media import content_hash
from m5ds.files import writing
from m5ds.kernels.common.philox import product_hash

MAX_MEDIA_BYTES = 1 << 30
"""A larger file is an error: a sample is read whole, on every rank that trains on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShard:
    """What the manifest needs to know of a shard."""

    entry: ShardEntry
    presence_patterns: Counter[str]


def write_shard(
    directory: Path,
    name: str,
    products: Iterable[tuple[str, dict[str, Any], int]],
    media_root: Path,
    *,
    audio_from_video: bool,
) -> WrittenShard:
    """Write DIR/<name>.tar and DIR/<name>.index.parquet from (key, spooled record, label) of each product.

    Raises CatalogueError where a media file has changed since it was listed.
    """
    tar_path, index_path = directory / f"{name}.tar", directory / f"{name}.index.parquet"
    tar_path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with writing(tar_path) as file:
        hashed = _HashedFile(file)
        with TarWriter(hashed, user="m5ds", group="m5ds", mtime=0, encoder=False) as writer:
            for key, record, label in products:
                media = dict(_read_media(record, media_root))
                if audio_from_video:
                    _add_sound_of_clips(media)
                rows.append(_write_product(writer, key, record, label, media))
    with writing(index_path) as file:
        index = _HashedFile(file)
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), index, compression="zstd")
    return WrittenShard(
        entry=ShardEntry(
            name=name,
            num_products=len(rows),
            bytes=hashed.size,
            sha256=hashed.digest.hexdigest(),
            index_sha256=index.digest.hexdigest(),
        ),
        presence_patterns=Counter("+".join(row["present"]) for row in rows),
    )


def _write_product(
    writer: TarWriter, key: str, record: dict[str, Any], label: int, media: dict[str, list[tuple[str, bytes]]]
) -> dict[str, Any]:
    """Write the product's members; returns its row of the index."""
    sample: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    for name, files in media.items():
        for number, (suffix, data) in enumerate(files):
            sample[f"{name}.{number}.{suffix}"] = data
            names.setdefault(name, []).append(f"{key}.{name}.{number}.{suffix}")
    title, description, attributes = record["title"], record["description"], record["attributes"]
    present = presence(names, title, description, attributes)
    kept = ("id", "title", "description", "attributes", "category", "group")
    described = {**{field: record[field] for field in kept}, "present": present, "media": names, "i18n": record["i18n"]}
    sample["json"] = dumps(described).encode()
    start = writer.tarstream.offset
    writer.write({"__key__": key, **sample})
    # TarWriter writes members sorted by name, each behind one header block.
    members, hashes, at = [], [], start
    for member in sorted(sample):
        size = len(sample[member])
        hashes.append(content_hash(sample[member]))
        members.append({"name": f"{key}.{member}", "offset": at + tarfile.BLOCKSIZE, "size": size})
        at += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    assert at == writer.tarstream.offset, (at, writer.tarstream.offset)
    return {
        "key": key,
        "id": record["id"],
        "product": product_hash(record["id"]),
        "label": label,
        "present": present,
        "offset": start,
        "size": at - start,
        "members": members,
        "title_chars": len(title),
        "text_chars": len(title) + len(description),
        "table_pairs": len(attributes),
        "table_chars": sum(len(name) + len(value) for name, value in attributes),
        MEMBER_HASHES: hashes,
    }


def _read_media(record: dict[str, Any], root: Path) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Each modality's (suffix, bytes)."""
    for name, files in record["media"].items():
        loaded = []
        for path, size, _ in files:
            here = f"{record['where']}: product {record['id']!r}: {path}"
            if size > MAX_MEDIA_BYTES:
                raise CatalogueError(f"{here} has {size} bytes, more than {MAX_MEDIA_BYTES}; cut it or leave it out")
            data = (root / path).read_bytes()
            if len(data) != size:
                raise CatalogueError(f"{here} changed while the shards were built; run again")
            loaded.append((_suffix(path), data))
        yield name, loaded


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower().removeprefix(".")
    return suffix if re.fullmatch("[a-z0-9]{1,8}", suffix) else "bin"


def _add_sound_of_clips(media: dict[str, list[tuple[str, bytes]]]) -> None:
    """For each modality that is the sound of another and has no file: the first clip with a sound stream, as it is."""
    for row in modality.table():
        if row.sound_of is not None and row.name not in media:
            clips = [clip for clip in media.get(row.sound_of, []) if f".{clip[0]}" not in FEATURE_SUFFIXES]
            sounding = next((clip for clip in clips if has_sound(clip[1])), None)
            if sounding is not None:
                media[row.name] = [sounding]


def has_sound(data: bytes) -> bool:
    """Whether the bytes are a media file with a sound stream. Headers only: decoding is the reader's."""
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            return len(container.streams.audio) > 0
    except (av.FFmpegError, ValueError, OSError):
        return False


class _HashedFile:
    """A file for writing that keeps the SHA-256 and the size of what was written."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False
