"""Checkpoint tags on disk: what makes one complete, which is the newest, which are kept.

A tag is a folder. It is complete when its own manifest, written last, names every file with size and SHA-256 and they
are all there. `latest` moves after that, and a folder that is being removed loses its manifest first.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m5ds.files import sha256_of_file, write_atomically

MANIFEST = "manifest.json"
LATEST = "latest"
STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A complete tag: its name, when its manifest was written (seconds), and its file table."""

    name: str
    created: float
    files: dict[str, dict[str, Any]]


def tag_name(step: int) -> str:
    return f"step-{step:08d}"


def list_files(folder: Path) -> list[str]:
    """Relative names of all files of a tag but its manifest, sorted."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    )


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and hash of each of these files."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of_file(folder / name, sync=True)}
        for name in names
    }


def complete(root: Path, tag: str, created: float, files: dict[str, dict[str, Any]]) -> None:
    """Write the tag's manifest, then move `latest`."""
    text = json.dumps({"version": 1, "created": created, "files": files}, indent=1)
    write_atomically(root / tag / MANIFEST, text)
    write_atomically(root / LATEST, tag)


def read(root: Path, tag: str) -> Tag:
    """The tag, its files there and of the right size; ValueError says what is wrong with it. Hashes: `wrong_hashes`."""
    folder = root / tag
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = Tag(name=tag, created=float(manifest["created"]), files=dict(manifest["files"]))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no {MANIFEST}, so the save did not finish") from error
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST}: not readable: {error}") from error
    for name, entry in found.files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: missing")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, its manifest says {entry['bytes']}")
    return found


def wrong_hashes(root: Path, tag: Tag, names: Iterable[str]) -> list[str]:
    """Messages for those of these files whose bytes are not what the manifest says."""
    return [
        f"{root / tag.name / name}: its bytes do not match its manifest"
        for name in names
        if sha256_of_file(root / tag.name / name) != tag.files[name]["sha256"]
    ]


def newest_first(root: Path) -> tuple[list[Tag], list[str]]:
    """Complete tags, newest first (by time of saving, then name), and why each other folder was skipped."""
    found, skipped = [], []
    for folder in sorted(root.glob("step-*")):
        try:
            found.append(read(root, folder.name))
        except ValueError as error:
            skipped.append(str(error))
    return sorted(found, key=lambda tag: (tag.created, tag.name), reverse=True), skipped


def remove(root: Path, tag: str) -> None:
    """Delete a tag; interrupted half way it is incomplete, not damaged."""
    with contextlib.suppress(FileNotFoundError):
        (root / tag / MANIFEST).unlink()
    shutil.rmtree(root / tag, ignore_errors=True)


def keep_last(root: Path, count: int) -> list[str]:
    """Remove all but the newest `count` complete tags, and unfinished saves. Returns what was removed."""
    found, _ = newest_first(root)
    kept = {tag.name for tag in found[:count]}
    removed = [folder.name for folder in sorted(root.glob("step-*")) if folder.name not in kept]
    for name in removed:
        remove(root, name)
    return removed
