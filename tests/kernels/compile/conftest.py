"""Compile tests need kernels that were imported without the interpreter."""

import pytest

from m5ds.kernels.common.dispatch import interpreting


def pytest_collection_modifyitems(items):
    if not interpreting():
        return
    skip = pytest.mark.skip(reason="TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    for item in items:
        if "tests/kernels/compile" in item.path.as_posix():
            item.add_marker(skip)
