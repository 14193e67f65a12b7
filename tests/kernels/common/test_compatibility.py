"""Versions are told apart by numbers, and an older interpreter is mended in the one way that it needs."""

import numpy as np
import pytest
from triton.runtime import interpreter

from m5ds.kernels import compatibility
from m5ds.kernels.compatibility import mend_interpreter, release


@pytest.mark.parametrize(
    ("version", "expected"), [("3.6.0", (3, 6)), ("2.11.0+cu130", (2, 11)), ("3.10.1", (3, 10)), ("2.9.0a0", (2, 9))]
)
def test_releases_compare_by_number(version, expected):
    assert release(version) == expected


@pytest.fixture
def patched_attributes(monkeypatch):
    """What the interpreter sets on tensors, by name, after `mend_interpreter` under a Triton of that version."""

    def attributes(version: str):
        found = {}

        class Scope:
            def set_attr(self, target, name, value):
                found[name] = value

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", _original)
        monkeypatch.setattr(compatibility.triton, "__version__", version)
        mend_interpreter.cache_clear()
        mend_interpreter()
        interpreter._patch_lang_tensor(object, Scope())
        return found

    yield attributes
    mend_interpreter.cache_clear()


def _original(tensor, scope):
    """What Triton 3.6 does."""
    scope.set_attr(tensor, "__index__", lambda self: int(np.ndarray.__index__(self.handle.data)))
    scope.set_attr(tensor, "__str__", lambda self: "theirs")


class Scalar:
    class handle:  # noqa: N801
        data = np.array([7], np.int32)


def test_a_bound_with_a_dimension_is_a_number_under_an_older_triton(patched_attributes):
    attributes = patched_attributes("3.6.0")
    assert attributes["__index__"](Scalar) == 7
    assert attributes["__str__"](Scalar) == "theirs"


def test_a_triton_that_needs_nothing_is_left_alone(patched_attributes):
    with pytest.raises(TypeError):
        patched_attributes("3.7.1")["__index__"](Scalar)
