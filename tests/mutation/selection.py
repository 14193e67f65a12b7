"""Which tests are asked about a mutant, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutation.edits import ROOT, Edit
from mutation.recording import SETUP

SECONDS_PER_MUTANT = 90.0
"""Tests that take longer than this together are not all run; the quickest are."""


class Chosen:
    """A pytest plugin: runs the named tests in the order given and no others."""

    def __init__(self, names: Sequence[str]):
        self._rank = {name: i for i, name in enumerate(names)}

    def pytest_collection_modifyitems(self, config, items):
        items[:] = sorted((i for i in items if i.nodeid in self._rank), key=lambda i: self._rank[i.nodeid])


@dataclass(frozen=True)
class Selection:
    """Tests of one mutant in two runs: those of one file, which nearly always notice it, and the others."""

    first: tuple[str, ...]
    others: tuple[str, ...]
    seconds: tuple[float, float]
    """Processor time of each of the two without a mutant."""
    left_out: int


def fast_test_files() -> list[str]:
    """All but the kernels' interpreter and compile tests, which need a process with other settings."""
    names = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
    skipped = ("tests/kernels/interpreter/", "tests/kernels/compile/", "tests/gpu/")
    tool = (
        "tests/repository/test_mutation.py",
        "tests/kernels/test_mutate.py",
        "tests/repository/test_layout_of_repository.py",
    )
    return [name for name in names if not name.startswith(skipped) and name not in tool]


def select(edits: Sequence[Edit], records: dict[str, dict]) -> Selection:
    """Tests that execute an edited line: first those of the file that is named after the module or imports it."""
    ranks: dict[str, tuple] = {}
    for edit in edits:
        for file, record in records.items():
            for test, rank in _executing(edit, file, record).items():
                ranks[test] = min(ranks.get(test, rank), rank)
    seconds = {test: record["seconds"][test] for record in records.values() for test in record["seconds"]}
    ordered = sorted(ranks, key=lambda test: (ranks[test], seconds[test], test))
    kept, total = [], 0.0
    for test in ordered:
        if not kept or total + seconds[test] <= SECONDS_PER_MUTANT:
            kept.append(test)
            total += seconds[test]
    own = _file(kept[0]) if kept else ""
    first = tuple(test for test in kept if _file(test) == own)
    others = tuple(test for test in kept if _file(test) != own)
    first_seconds = sum(seconds[test] for test in first)
    return Selection(first, others, (first_seconds, total - first_seconds), len(ordered) - len(kept))


def distance(test_file: str, path: str) -> int:
    """0: the test file is named after the module; 1: it imports it; 2: neither."""
    return 0 if _mirrors(test_file, path) else 1 if _imports(test_file, path) else 2


def _file(test: str) -> str:
    return test.split("::")[0]


def _executing(edit: Edit, file: str, record: dict) -> dict[str, tuple]:
    """{test of the file: rank}; lower ranks run first."""
    by_test = record["lines"].get(edit.path, {})
    wanted = set(edit.lines)
    passing = [test for test in record["seconds"] if test not in record["failed"]]
    near = distance(file, edit.path)
    if not wanted:
        return {test: (near, 2) for test in passing} if by_test else {}
    found = {test: (near, 0) for test in passing if wanted & set(by_test.get(test, ()))}
    if wanted & (set(by_test.get(SETUP, ())) | set(by_test.get("", ()))):
        # What a fixture or a cached function made once may be seen by any test of the file.
        found = {test: (near, 1) for test in passing} | found
    elif found and near == 0:
        found = {test: (3, 0) for test in passing} | found
    return found


def _mirrors(test_file: str, path: str) -> bool:
    module = Path(path).stem
    name = Path(test_file).stem.removeprefix("test_")
    return Path(test_file).parent.name == Path(path).parent.name.replace("m5ds", "tests") and (
        name.startswith(module) or module.startswith(name)
    )


_texts: dict[str, str] = {}


def _imports(test_file: str, path: str) -> bool:
    if test_file not in _texts:
        _texts[test_file] = (ROOT / test_file).read_text()
    module = path.removesuffix(".py").replace("/", ".")
    package, _, name = module.rpartition(".")
    text = _texts[test_file]
    return f"{module} import" in text or f"from {package} import {name}" in text or f"import {module}" in text
