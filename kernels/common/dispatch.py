"""Which implementation of an op runs: Triton on CUDA, the torch path elsewhere; tests force one and read which ran."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

PATHS = ("reference", "torch", "triton")

_forced: ContextVar[str | None] = ContextVar("m5ds_forced_kernel_path", default=None)
_last: dict[str, str] = {}


def _known(path: str) -> str:
    if path not in PATHS:
        raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
    return path


def interpreting() -> bool:
    """True where Triton kernels run in the interpreter: TRITON_INTERPRET=1, set before they are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def choose_path(op: str, device: torch.device, path: str | None = None, available: tuple[str, ...] = PATHS) -> str:
    """The path that `op` takes on tensors of `device`, recorded for `last_path`.

    `path` (the caller's wish) wins over `force_path`, which wins over the device's own: CUDA -> `triton`, else `torch`.
    An op that lacks the path so chosen (it is not in `available`) runs its torch path.
    `ValueError` for an unknown path, and for `triton` on a device that cannot run it.
    """
    chosen = _known(path or _forced.get() or ("triton" if device.type == "cuda" else "torch"))
    if chosen not in available:
        chosen = "torch"
    if chosen == "triton" and device.type != "cuda" and not interpreting():
        raise ValueError(
            f"path='triton' needs CUDA tensors, got {device}; on a CPU set TRITON_INTERPRET=1 before importing m5ds"
        )
    if chosen == "triton" and interpreting():
        from m5ds.kernels.compatibility import mend_interpreter  # imports Triton, which a CPU run does without

        mend_interpreter()
    _last[op] = chosen
    return chosen


@contextmanager
def force_path(path: str) -> Iterator[None]:
    """Every op called inside the `with` block takes this path, unless its call names another."""
    token = _forced.set(_known(path))
    try:
        yield
    finally:
        _forced.reset(token)


def last_path(op: str) -> str | None:
    """The path that the latest call of `op` took in this process; None before the first."""
    return _last.get(op)
