"""Files that are whole or not there: atomic writes that survive a power cut, SHA-256, locks, lines of JSON."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PART = ".part"
"""Suffix of what is not whole yet. A killed writer leaves it behind; nothing reads it."""


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends: all of it, or the old file.

    Its bytes are on the disk before it gets the name, and the name is when this returns. An error in the block removes
    what was written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: str | bytes) -> None:
    """All of the data (text as UTF-8) or the old file, whatever happens meanwhile."""
    with writing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def sync_folder(folder: Path) -> None:
    """Names that were given in the folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync no folder: they keep names in order themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sha256(data: bytes) -> str:
    """SHA-256 of the bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path, sync: bool = False) -> str:
    """SHA-256 of the file's bytes, hexadecimal; with `sync` they are on the disk when this returns."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of this file; the kernel lets it go when its holder ends, however it ends.

    Without `wait` a lock that another process holds is a BlockingIOError.
    """
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The file's objects, one JSON object a line; none without a file.

    A last line that a killed run left torn is dropped; another bad one is a ValueError.
    """
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is not JSON ({error}); move the file away") from error
    return found
