"""Which lines each test executes, by coverage.py, in the test's own process and in those that it starts."""

import json
import os
from pathlib import Path

import coverage
import pytest

STARTED_WITH = "M5DS_MUTATION_RECORD"
"""Environment of processes that a test starts: `folder|data file|test`, read by the tree's sitecustomize.py."""
SITECUSTOMIZE = f"""
import os
if "{STARTED_WITH}" in os.environ:
    import atexit, coverage
    folder, data, test = os.environ["{STARTED_WITH}"].split("|", 2)
    started = coverage.Coverage(data, data_suffix=True, source=[folder + "/m5ds"], context=test, config_file=False)
    started.start()
    atexit.register(started.save)
    atexit.register(started.stop)
"""
SETUP = "setup"


class Recorder:
    """A pytest plugin: writes {"seconds", "failed", "lines"} of a file of tests as JSON.

    `lines` is {source file: {test: lines}}, where the test "" stands for what ran while files were imported and
    the test `setup` for what fixtures ran, which may be those of all the file's tests.
    """

    def __init__(self, folder: str, path: str):
        self._folder, self._path = Path(folder), Path(path)
        self._data = f"{path}.coverage"
        (self._folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self._coverage = coverage.Coverage(self._data, source=[f"{folder}/m5ds"], config_file=False)
        self._seconds: dict[str, float] = {}
        self._failed: list[str] = []
        self._coverage.start()

    def _switch(self, context: str) -> None:
        self._coverage.switch_context(context)
        os.environ[STARTED_WITH] = f"{self._folder}|{self._data}|{context}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self._switch(SETUP)
        start = _processor_seconds()
        try:
            return (yield)
        finally:
            self._seconds[item.nodeid] = _processor_seconds() - start
            self._switch("")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self._switch(item.nodeid)
        try:
            return (yield)
        finally:
            self._switch(SETUP)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self._failed.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self):
        os.environ.pop(STARTED_WITH, None)
        self._coverage.stop()
        self._coverage.save()
        self._coverage.combine([str(self._path.parent)], strict=False, keep=False)
        data = self._coverage.get_data()
        lines: dict[str, dict[str, list[int]]] = {}
        for name in data.measured_files():
            for line, tests in data.contexts_by_lineno(name).items():
                found = lines.setdefault(_relative(Path(name), self._folder), {})
                for test in tests:
                    found.setdefault(test, []).append(line)
        record = {"seconds": self._seconds, "failed": sorted(set(self._failed)), "lines": lines}
        self._path.write_text(json.dumps(record))


def _processor_seconds() -> float:
    """Of this process and of those it waited for: unlike the wall clock's, nearly the same on a busy machine."""
    return sum(os.times()[:4])


def _relative(path: Path, folder: Path) -> str:
    """m5ds/kernels/x.py of the copy is kernels/x.py of the repository."""
    name = str(path.resolve().relative_to(folder.resolve()))
    return name.removeprefix("m5ds/") if name.startswith("m5ds/kernels/") else name
