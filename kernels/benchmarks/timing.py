"""Milliseconds of forward, backward and both: wall time by events on a GPU, CPU time of one thread without one."""

import time
from collections.abc import Callable

import torch

from m5ds.kernels.benchmarks.case import Provider, percentiles

MODES = ("forward", "backward", "both")
_CPU_SECONDS, _FEWEST = 2.0, 5
"""A CPU measurement ends after the repetitions asked for, or this long and this many of them."""


def keep_freed_memory() -> None:
    """Raise glibc's thresholds as any training process has: it keeps what it freed once a block of 32 MB was freed.

    Until then each large tensor is mapped anew and pays a page fault every 4 KiB, which at these sizes costs as much as
    the work (paper lengths: 69 ms became 125).
    """
    torch.empty(8_000_000).zero_()


def measure(provider: Provider, mode: str, device: torch.device, repeats: int) -> tuple[float, float, float, float]:
    """p20, p50, p80 in milliseconds of at most `repeats` runs, and peak memory in MiB (GPU; 0 on a CPU)."""
    leaves = [x for x in provider.inputs if x.requires_grad]
    if mode == "backward":
        out = provider.function(*provider.inputs)

        def run() -> None:
            torch.autograd.grad(out, leaves, provider.grad, retain_graph=True)
    elif mode == "forward":

        def run() -> None:
            with torch.no_grad():
                provider.function(*provider.inputs)
    else:

        def run() -> None:
            torch.autograd.grad(provider.function(*provider.inputs), leaves, provider.grad)

    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        samples = _cuda_milliseconds(run, repeats)
        return *percentiles(samples), torch.cuda.max_memory_allocated(device) / 2**20
    samples: list[float] = []
    while len(samples) < repeats and (len(samples) < _FEWEST or sum(samples) < 1e3 * _CPU_SECONDS):
        start = time.process_time()
        run()
        samples.append(1e3 * (time.process_time() - start))
    return *percentiles(samples), 0.0


def _cuda_milliseconds(run: Callable[[], None], repeats: int) -> list[float]:
    """One pair of events a repetition, after the second-level cache has been overwritten."""
    scratch = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        scratch.zero_()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]
