"""Streams of raw records from JSONL and Parquet catalogues (m5product.py has the official JSON).

Each yields `(where, record)`: `where` is `file:line` (Parquet: `file:row N`), `record` the unchecked JSON object. No
more than a line or a batch of rows is in memory.
"""

import codecs
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("jsonl", "parquet", "m5product")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".json": "m5product"}
FEATURE_SUFFIXES = (".npy", ".npz")
"""Files of precomputed features."""
MAX_RECORD_BYTES = 1 << 24


class CatalogueError(ValueError):
    """A catalogue that cannot be used. Its message is one line: file:line, field, value, remedy."""


def format_of(path: Path, given: str | None = None) -> str:
    """One of FORMATS, from the option or else the file's suffix."""
    if given is not None:
        if given not in FORMATS:
            raise CatalogueError(f"catalogue format must be one of {', '.join(FORMATS)}, got {given!r}")
        return given
    if path.suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise CatalogueError(f"{path}: suffix {path.suffix!r} is none of {known}; say which with --format")
    return _SUFFIXES[path.suffix]


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """One JSON object a line; blank lines are skipped."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_RECORD_BYTES + 1)
            if not line:
                return
            where = f"{path}:{number}"
            if len(line) > MAX_RECORD_BYTES:
                raise CatalogueError(f"{where}: longer than {MAX_RECORD_BYTES} bytes; one product a line")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError as error:
                raise CatalogueError(f"{where}: not UTF-8 ({error}); save the file as UTF-8") from error
            except (ValueError, RecursionError) as error:
                shown = line[:60].decode(errors="replace").strip()
                raise CatalogueError(f"{where}: not JSON ({error}), got {shown!r}; one JSON object a line") from error
            yield where, must_be_object(where, record)


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """One record a row. A null is a missing field; maps arrive as lists of pairs."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", record
    except pa.ArrowException as error:
        raise CatalogueError(f"{path}: not readable as Parquet after row {number} ({error})") from error


def must_be_object(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise CatalogueError(f"{where}: must be a JSON object, got {type(record).__name__}")
    return record
