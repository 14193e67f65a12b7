"""How close a measured time is to what this device could do at best.

Two rates are measured once at the start: a large copy (bytes read plus bytes written) and a large matrix product. A
problem's bound is the slower of its bytes over the one and its FLOPs over the other; its share is bound over time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from m5ds.kernels.benchmarks.case import Provider, Work, percentiles

_COPY_BYTES = {"cuda": 4 * 2**30, "cpu": 64 * 2**20}
_MATMUL_SIDE = {"cuda": 8192, "cpu": 512}
_REPEATS = 10


@dataclass(frozen=True)
class Ceilings:
    """What the device was seen to do."""

    bytes_per_second: float
    flops_per_second: float

    def bound_ms(self, work: Work) -> float:
        """The least milliseconds that this work takes at these rates."""
        return 1e3 * max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The copy bandwidth and the matrix rate in `dtype`: on a GPU by events, on a CPU in CPU seconds (one thread).

    Random data, as zeros run faster on some chips. The copy takes at most a quarter of a GPU's free memory.
    """
    return Ceilings(_copy_rate(device), _matrix_rate(device, dtype))


def _copy_rate(device: torch.device) -> float:
    size = _COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    side = _MATMUL_SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: torch.matmul(a, b), device)


def dense_work(provider: Provider, forward_flops: int, backward_flops: int) -> dict[str, Work]:
    """Work of an op whose every input is read whole, and whose gradients are all written whole."""
    inputs = sum(_size(x) for x in provider.inputs)
    gradients = sum(_size(x) for x in provider.inputs if x.requires_grad)
    out = _size(provider.grad)
    return both(Work(inputs + out, forward_flops), Work(inputs + out + gradients, backward_flops))


def both(forward: Work, backward: Work) -> dict[str, Work]:
    """By the modes of `timing.MODES`."""
    whole = Work(forward.bytes + backward.bytes, forward.flops + backward.flops)
    return {"forward": forward, "backward": backward, "both": whole}


def _size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of some runs after two that do not count."""
    samples = []
    for _ in range(_REPEATS + 2):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            samples.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.process_time()
            run()
            samples.append(time.process_time() - start)
    return max(percentiles(samples[2:])[1], 1e-9)
