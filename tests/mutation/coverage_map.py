"""What every fast test executes, measured once and kept until the test or something that it runs changes."""

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutation.edits import ROOT
from mutation.trees import Tree

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m5ds_mutation"


def records(files: list[str], trees: list[Tree], report) -> dict[str, dict]:
    """{test file: its record (mutation/recording.py)}; missing ones are measured, one file at a time in each tree."""
    found: dict[str, dict] = {}
    missing = []
    for name in files:
        kept = _kept(name)
        if kept is None:
            missing.append(name)
        else:
            found[name] = kept
    if missing:
        report(f"measuring what the tests of {len(missing)} files execute; kept in {CACHE}")
    free = list(trees)

    def measure(name: str) -> tuple[str, dict]:
        tree = free.pop()
        try:
            record = _measure(name, tree)
            _keep(name, record)
            return name, record
        finally:
            free.append(tree)

    with ThreadPoolExecutor(len(trees)) as pool:
        for name, record in pool.map(measure, missing):
            found[name] = record
            if record["failed"]:
                report(f"{name}: not asked, for they fail without any mutation: {', '.join(record['failed'])}")
    return {name: found[name] for name in files}


def _measure(name: str, tree: Tree) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        status = tree.run([name], record=str(path), first_failure=False, log=f"{folder}/log")
        if not path.exists():
            raise RuntimeError(f"{name}: pytest ended with {status}: {(Path(folder) / 'log').read_text()[-2000:]}")
        return json.loads(path.read_text())


def _slot(name: str) -> Path:
    return CACHE / f"{name.replace('/', '.')}.{_hash([name, *_shared(name)])}.json"


def _shared(name: str) -> list[str]:
    """Files that every test of the folder may read without Python: configs, helpers, pytest's options."""
    helpers = [
        p for p in (ROOT / "tests").rglob("*.py") if not p.name.startswith("test_") and p.parent.name != "mutation"
    ]
    others = [p for p in (ROOT / "configs").rglob("*") if p.is_file()]
    return sorted(str(p.relative_to(ROOT)) for p in [*helpers, *others, ROOT / "pyproject.toml"])


def _kept(name: str) -> dict | None:
    """The record of this test file, if all source files it ran are still what they were."""
    slot = _slot(name)
    if not slot.exists():
        return None
    kept = json.loads(slot.read_text())
    files = sorted(kept["record"]["lines"])
    if any(not (ROOT / file).exists() for file in files) or _hash(files) != kept["source"]:
        return None
    return kept["record"]


def _keep(name: str, record: dict) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"source": _hash(sorted(record["lines"])), "record": record})
    fresh = _slot(name).with_suffix(f".{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(_slot(name))


def _hash(files: list[str]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(file.encode() + b"\0" + (ROOT / file).read_bytes())
    return total.hexdigest()[:16]
