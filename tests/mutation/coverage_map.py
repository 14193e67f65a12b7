"""What every fast test executes: measured once, and kept for as long as the test stays what it is.

Where source has changed since, the lines of a record are moved along by comparing the texts, so that a small change
costs no new measurement. A record is measured again where its test file or a helper that it imports changed, where a
tenth of the lines that it ran did, or on demand (`--fresh`).
"""

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from mutation.edits import ROOT
from mutation.trees import Tree

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m5ds_mutation"
_TOLERATED = 0.1
"""Share of executed lines that may have changed since they were recorded."""


def records(
    files: list[str], trees: list[Tree], report: Callable[[str], object], fresh: bool = False
) -> dict[str, dict]:
    """{test file: its record (mutation/recording.py)}; missing ones are measured, one file at a time in each tree."""
    found = {name: kept for name in files if not fresh and (kept := _kept(name)) is not None}
    missing = [name for name in files if name not in found]
    if missing:
        report(f"measuring what the tests of {len(missing)} files execute; kept in {CACHE}")
    free = list(trees)

    def measure(name: str) -> dict:
        tree = free.pop()
        try:
            record = _measure(name, tree)
        finally:
            free.append(tree)
        _keep(name, record)
        return record

    with ThreadPoolExecutor(len(trees)) as pool:
        found |= dict(zip(missing, pool.map(measure, missing), strict=True))
    for name in missing:
        if found[name]["failed"]:
            report(f"not asked, for they fail without any mutation: {', '.join(found[name]['failed'])}")
    return {name: found[name] for name in files}


def _measure(name: str, tree: Tree) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        status = tree.run([name], record=str(path), first_failure=False, log=f"{folder}/log")
        if not path.exists():
            raise RuntimeError(f"{name}: pytest ended with {status}: {(Path(folder) / 'log').read_text()[-2000:]}")
        return json.loads(path.read_text())


def _kept(name: str) -> dict | None:
    slot = _slot(name)
    if not slot.exists():
        return None
    record = json.loads(slot.read_text())
    for file, digest in record.pop("sources").items():
        if not (ROOT / file).exists():
            return None
        if digest == _digest((ROOT / file).read_bytes()):
            continue
        old = _source_slot(digest)
        moved = _moved(old, file) if old.exists() else {}
        executed = {line for lines in record["lines"][file].values() for line in lines}
        if sum(line not in moved for line in executed) > _TOLERATED * len(executed):
            return None
        record["lines"][file] = {
            test: sorted({new for line in lines for new in moved.get(line, ())})
            for test, lines in record["lines"][file].items()
        }
    return record


@cache
def _moved(old: Path, file: str) -> dict[int, tuple[int, ...]]:
    """{line of the old text: its lines today}. A line that is new counts as run where the one before it is."""
    texts = [path.read_text().splitlines() for path in (old, ROOT / file)]
    moved: dict[int, tuple[int, ...]] = {}
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        if tag == "equal":
            moved |= {i + 1: (i + j1 - i1 + 1,) for i in range(i1, i2)}
        elif j2 > j1 and i1:
            moved[i1] = (*moved.get(i1, ()), *range(j1 + 1, j2 + 1))
    return moved


def _keep(name: str, record: dict) -> None:
    sources = {file: (ROOT / file).read_bytes() for file in sorted(record["lines"])}
    for text in sources.values():
        _write(_source_slot(_digest(text)), text)
    kept = {"sources": {file: _digest(text) for file, text in sources.items()}, **record}
    _write(_slot(name), json.dumps(kept).encode())


def _write(path: Path, data: bytes) -> None:
    """In one step: another run may read or write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.{id(data)}")
    part.write_bytes(data)
    part.replace(path)


def _slot(name: str) -> Path:
    """Named by the content of the test file and of the helpers beside it that it imports."""
    path = ROOT / name
    text = path.read_text()
    helpers = [other for other in sorted(path.parent.glob("*.py")) if re.search(rf"\b{other.stem}\b", text)]
    texts = [other.read_bytes() for other in (path, *helpers)]
    return CACHE / f"{name.replace('/', '.')}.{_digest(b''.join(texts))}.json"


def _source_slot(digest: str) -> Path:
    return CACHE / "sources" / digest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
