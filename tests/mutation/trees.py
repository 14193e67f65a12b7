"""A copy of the repository in which files can be changed and tests run, each time in a fork of a warm process."""

import compileall
import multiprocessing
import os
import py_compile
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mutation.edits import ROOT, Edit

PASSED, FAILED = 0, 1
PRELOADED = (
    "pytest",
    "torch",
    "torch._dynamo",
    "torch.utils.checkpoint",
    "triton.language",
    "transformers",
    "transformers.models.bert.modeling_bert",
    "transformers.models.auto",
    "deepspeed",
    "av",
    "numpy",
    "scipy.stats",
    "scipy.sparse",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "sklearn.linear_model",
    "sklearn.cluster",
    "sklearn.feature_extraction.text",
    "faiss",
    "peft",
    "webdataset",
    "sentencepiece",
    "omegaconf",
    "pydantic",
    "fsspec",
    "PIL.Image",
    "matplotlib.pyplot",
    "tensorboard",
    "hypothesis",
    "nvidia.dali",
    "safetensors.torch",
    "torch.utils.tensorboard",
    "ranx",
)
"""What takes long to import. A module that is not installed is passed over."""
_SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc")


class Tree:
    """The repository's source under a temporary folder, with kernels/ where the package is found (m5ds/kernels)."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        self._preloaded = preloaded
        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        for name in ("m5ds", "kernels", "tests", "tools", "configs", "docs"):
            shutil.copytree(ROOT / name, self.root / name, ignore=_SKIPPED)
        shutil.copytree(ROOT / "kernels", self.root / "m5ds" / "kernels", ignore=_SKIPPED)
        for path in ROOT.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy(path, self.root)
        # Checked by content: a mutant may have the size and the second of what it replaces.
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self.root / "m5ds", quiet=2, invalidation_mode=mode)

    def close(self) -> None:
        self._folder.cleanup()

    def run(self, tests: Sequence[str], edits: Sequence[Edit] = (), timeout: float = 1800.0, **options) -> int | None:
        """pytest's status with the edits made (1: a test failed, 2: collection did, below 0: crashed); None: hung."""
        touched = {edit.path for edit in edits}
        try:
            for path in touched:
                source = (ROOT / path).read_bytes()
                for edit in sorted((e for e in edits if e.path == path), key=lambda e: -e.start):
                    source = edit.apply(source)
                _place(self.root, path).write_bytes(source)
            return _forked(self._preloaded, str(self.root), list(tests), timeout, options)
        finally:
            for path in touched:
                shutil.copy(ROOT / path, _place(self.root, path))


def _place(root: Path, path: str) -> Path:
    return root / "m5ds" / path if path.startswith("kernels/") else root / path


def _forked(preloaded: Sequence[str], folder: str, tests: list[str], timeout: float, options: dict) -> int | None:
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(preloaded))
    run = forks.Process(target=_run_pytest, args=(folder, tests), kwargs=options)
    run.start()
    run.join(timeout)
    hung = run.exitcode is None
    try:
        # Whatever the tests started belongs to the run's own session.
        os.killpg(run.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if hung:
            run.kill()
    run.join()
    return None if hung else run.exitcode


def _run_pytest(
    folder: str,
    tests: list[str],
    chosen: list[str] | None = None,
    first_failure: bool = True,
    record: str | None = None,
    log: str = os.devnull,
) -> None:
    """In a process of its own: exit with pytest's status on the tree in `folder`, output to `log`.

    `chosen` are the tests to run of those files, in this order; `record` names a file for what they execute
    (mutation/coverage_map.py).
    """
    import pytest

    from mutation.selection import Chosen

    os.setsid()
    os.chdir(folder)
    sys.path[:] = [folder, *(entry for entry in sys.path if entry and not Path(entry).is_relative_to(ROOT / "tests"))]
    os.environ["PYTHONPATH"] = folder
    sys.dont_write_bytecode = True
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    plugins: list[object] = [Chosen(chosen)] if chosen else []
    if record:
        from mutation.recording import Recorder

        plugins.append(Recorder(folder, record))
    arguments = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-n0"]
    status = pytest.main([*arguments, *(["-x"] if first_failure else []), *tests], plugins=plugins)
    sys.stdout.flush()
    # No waiting for threads that a mutant left behind.
    os._exit(int(status))
