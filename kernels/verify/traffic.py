"""Count what a kernel moves, in Triton's interpreter: bytes loaded and stored by argument, FLOPs of dots, addresses.

    with count_traffic() as traffic:          # TRITON_INTERPRET=1 must be set before kernels are imported
        cross_modal_attention(..., path="triton")
    traffic.launches[0].loaded["p_q"]

The interpreter runs the grid in sequence and hides races, so every store is counted: an output is right only if each
of its elements is written exactly once. An access outside the tensors of the launch raises before it is made.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter


class OutOfBoundsError(IndexError):
    """A kernel touched an address outside all tensors that it was given."""


@dataclass
class LaunchTraffic:
    """One launch. Bytes are those of unmasked lanes, as if nothing were cached: an upper bound on DRAM traffic."""

    kernel: str
    loaded: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stored: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Bytes by argument name."""
    dot_flops: int = 0
    """Two per multiply-add of every tl.dot, masked lanes included."""
    writes: dict[str, np.ndarray] = field(default_factory=dict)
    """How often each element of a stored argument was written, in its logical order."""

    @property
    def total_loaded(self) -> int:
        return sum(self.loaded.values())

    @property
    def total_stored(self) -> int:
        return sum(self.stored.values())

    def written_once(self, *names: str) -> bool:
        """True where every element of the named arguments (default: all stored ones) was written exactly once."""
        return all(bool((self.writes[name] == 1).all()) for name in names or self.writes)


@dataclass
class Traffic:
    launches: list[LaunchTraffic] = field(default_factory=list)

    def of(self, kernel: str) -> LaunchTraffic:
        """The only launch of `kernel`; `KeyError` where there is none or more than one."""
        found = [launch for launch in self.launches if launch.kernel == kernel]
        if len(found) != 1:
            raise KeyError(f"{len(found)} launches of {kernel}, of: {[launch.kernel for launch in self.launches]}")
        return found[0]


@dataclass(frozen=True)
class _Argument:
    """Where a tensor argument lies: [begin, end) covers all of its elements."""

    name: str
    begin: int
    end: int
    tensor: Tensor

    @classmethod
    def build(cls, name: str, tensor: Tensor) -> "_Argument":
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        begin = tensor.data_ptr()
        return cls(name, begin, begin + (last + 1) * tensor.element_size() if tensor.numel() else begin, tensor)


class _Recorder:
    """Attributes addresses to the arguments of the launch that runs."""

    def __init__(self, launch: LaunchTraffic, arguments: list[_Argument]) -> None:
        self.launch = launch
        self.arguments = arguments
        self.stores: dict[str, list[np.ndarray]] = defaultdict(list)

    def load(self, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> None:
        for argument, chosen in self._attribute(pointers, mask, itemsize, "load"):
            self.launch.loaded[argument.name] += chosen.size * itemsize

    def store(self, pointers: np.ndarray, mask: np.ndarray, itemsize: int) -> None:
        for argument, chosen in self._attribute(pointers, mask, itemsize, "store"):
            self.launch.stored[argument.name] += chosen.size * itemsize
            self.stores[argument.name].append((chosen - argument.begin) // itemsize)

    def _attribute(
        self, pointers: np.ndarray, mask: np.ndarray, itemsize: int, access: str
    ) -> Iterator[tuple[_Argument, np.ndarray]]:
        pointers, mask = np.broadcast_arrays(pointers, mask)
        # a mask that an integer took part in arrives as 0 and 1
        left = pointers[mask.astype(bool)].astype(np.int64)
        for argument in self.arguments:
            if left.size == 0:
                return
            inside = (left >= argument.begin) & (left + itemsize <= argument.end)
            if inside.any():
                yield argument, left[inside]
                left = left[~inside]
        if left.size:
            spans = ", ".join(f"{a.name} [{a.begin:#x}, {a.end:#x})" for a in self.arguments)
            raise OutOfBoundsError(
                f"{self.launch.kernel}: {access} of {left.size} elements outside every argument, "
                f"first at {int(left[0]):#x}; arguments: {spans}"
            )

    def finish(self) -> None:
        for argument in self.arguments:
            if argument.name not in self.stores:
                continue
            span = (argument.end - argument.begin) // argument.tensor.element_size()
            counts = np.bincount(np.concatenate(self.stores[argument.name]), minlength=span)
            strided = torch.from_numpy(counts).as_strided(argument.tensor.shape, argument.tensor.stride())
            self.launch.writes[argument.name] = strided.numpy()


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Record every interpreted launch inside the `with` block. Not reentrant."""
    traffic = Traffic()
    current: list[_Recorder] = []
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    load, store, dot, run = (
        builder.create_masked_load,
        builder.create_masked_store,
        builder.create_dot,
        executor.__call__,
    )

    def counted_load(pointers, mask, *rest):
        current[-1].load(pointers.data, mask.data, pointers.get_element_ty().primitive_bitwidth // 8)
        return load(pointers, mask, *rest)

    def counted_store(pointers, value, mask, *rest):
        current[-1].store(pointers.data, mask.data, pointers.get_element_ty().primitive_bitwidth // 8)
        return store(pointers, value, mask, *rest)

    def counted_dot(a, b, accumulator, *rest):
        current[-1].launch.dot_flops += 2 * accumulator.data.size * a.data.shape[-1]
        return dot(a, b, accumulator, *rest)

    def counted_run(self, *arguments, **keywords):
        named = dict(zip(self.arg_names, arguments, strict=False)) | keywords
        tensors = [_Argument.build(name, x) for name, x in named.items() if isinstance(x, Tensor)]
        current.append(_Recorder(LaunchTraffic(self.fn.__name__), tensors))
        try:
            run(self, *arguments, **keywords)
        finally:
            recorder = current.pop()
        recorder.finish()
        traffic.launches.append(recorder.launch)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    builder.create_dot, executor.__call__ = counted_dot, counted_run
    try:
        yield traffic
    finally:
        del builder.create_masked_load, builder.create_masked_store, builder.create_dot
        executor.__call__ = run
