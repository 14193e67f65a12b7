"""Interpreter tests run in a process of their own: TRITON_INTERPRET=1 must be set before kernels are imported."""

import importlib

import pytest
import torch

from m5ds.kernels.common.dispatch import interpreting


def pytest_collection_modifyitems(items):
    if interpreting():
        return
    skip = pytest.mark.skip(reason="run in its own process: TRITON_INTERPRET=1 pytest tests/kernels/interpreter")
    for item in items:
        if "tests/kernels/interpreter" in item.path.as_posix():
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Uninitialised tensors are NaN (integers: their largest value), so that unwritten outputs show."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(scope="session", autouse=True)
def every_launch_is_compiled_ahead_of_time():
    """Whatever any test of this folder launched is among the configurations that kernels/verify/aot.py compiles."""
    yield
    if not interpreting():
        return
    from m5ds.kernels.common.tiles import ARCHITECTURES
    from m5ds.kernels.verify.aot import ops, shipped

    for op in ops():
        launched = importlib.import_module(f"m5ds.kernels.{op}.triton_path").LAUNCHED
        for arch in ARCHITECTURES:
            # hidden_dropout has one kernel and records variants only
            known = {name for c in shipped(op, arch) for name in ((c.kernel, c.variant), c.variant)}
            missing = launched - known
            assert not missing, f"{op} launched on {arch} what kernels/verify/aot.py does not compile: {missing}"
