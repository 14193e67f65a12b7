"""Where versions of our dependencies differ: the one place that tells them apart (docs/dependencies.md)."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import triton

_SCALARS_MENDED = (3, 7)


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as `3.6.0` or `2.11.0+cu130`."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


@cache
def mend_interpreter() -> None:
    """Let the interpreter of Triton before 3.7 loop to a bound that a kernel computed; before interpreted launches.

    It makes an `int` of an array with one element, which NumPy 2.5 refuses where the array has a dimension.
    """
    if release(triton.__version__) >= _SCALARS_MENDED:
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        def set_attr(target: Any, name: str, value: Any) -> None:
            scope.set_attr(target, name, _index if name == "__index__" else value)

        patch(tensor, SimpleNamespace(set_attr=set_attr))

    interpreter._patch_lang_tensor = patched


def _index(self: Any) -> int:
    return int(self.handle.data.item())
