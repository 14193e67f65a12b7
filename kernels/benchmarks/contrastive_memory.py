"""How presence_contrastive's memory grows from 1,024 to 16,384 products: one pair, forward and backward.

On a CPU each size runs in a process of its own, and the figure is the growth of its resident set over the inputs. The
Triton kernels are launched nowhere there: their figure is every byte that the op allocates, from which nothing that a
kernel could need is missing, since kernels allocate nothing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from m5ds.kernels.benchmarks.results import Row

WIDTH = 8
NAMES = {"torch": "streaming (torch path)", "triton": "streaming (triton)", "reference": "dense InfoNCE"}
SIZES = {"torch": (1024, 4096, 16384), "triton": (1024, 4096, 16384), "reference": (1024, 2048, 4096)}
"""The dense logits of 16,384 products would take 10 GB and more."""
_MIB = 2**20


def measurements(device: torch.device, grid: str) -> Iterator[Row]:
    """A row a path and size. On a GPU: the allocator's peak, dense logits up to 16,384 products too."""
    for path in ("triton", "reference") if device.type == "cuda" else NAMES:
        sizes = SIZES["triton" if device.type == "cuda" else path]
        for num_products in sizes[:2] if grid in ("quick", "short") else sizes:
            if device.type == "cuda":
                mib, milliseconds = _on_gpu(path, num_products, device)
            else:
                mib, milliseconds = _in_a_process(path, num_products)
            name = NAMES[path] + ", counted" * (path == "triton" and device.type == "cpu")
            parameters = {"products": num_products, "pairs": "one", "presence": 1.0, "width": WIDTH}
            times = (milliseconds,) * 3
            yield Row("contrastive_memory", name, "both", parameters, *times, mib)


def _problem(num_products: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(num_products, 2, WIDTH, generator=generator), dim=-1).to(device)
    return (
        features.requires_grad_(),
        torch.ones(num_products, 2, dtype=torch.bool, device=device),
        torch.arange(num_products, device=device),
    )


def _run(path: str, x_BMD: Tensor, present_BM: Tensor, positive_B: Tensor) -> None:
    from m5ds.kernels.presence_contrastive import presence_contrastive

    scale = torch.tensor(10.0, device=x_BMD.device)
    pairs = ((0, 1),)
    presence_contrastive(x_BMD, x_BMD, present_BM, present_BM, positive_B, pairs, scale, path=path).sum().backward()


def _on_gpu(path: str, num_products: int, device: torch.device) -> tuple[float, float]:
    inputs = _problem(num_products, device)
    _run(path, *inputs)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    _run(path, *inputs)
    end.record()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated(device) - before) / _MIB, begin.elapsed_time(end)


def _in_a_process(path: str, num_products: int) -> tuple[float, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1" if path == "triton" else "0"}
    command = [sys.executable, "-m", __name__, path, str(num_products)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"contrastive_memory, {path}, {num_products} products: {result.stderr.strip()[-300:]}")
    mib, milliseconds = result.stdout.split()[-2:]
    return float(mib), float(milliseconds)


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that ops make inside the `with` block, whether they live at the same time or not."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.bytes += value.numel() * value.element_size()
        return out


class _NoLaunch:
    """Stands for a kernel: takes the grid and the arguments, runs nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None


def counted_bytes(num_products: int) -> int:
    """What the Triton path allocates, launches left out. Needs TRITON_INTERPRET=1 on a CPU."""
    from m5ds.kernels.presence_contrastive import triton_path

    kernels = [name for name in vars(triton_path.kernels) if name.endswith("_kernel")]
    saved = {name: getattr(triton_path.kernels, name) for name in kernels}
    inputs = _problem(num_products, torch.device("cpu"))
    try:
        for name in kernels:
            setattr(triton_path.kernels, name, _NoLaunch())
        with Allocated() as mode:
            _run("triton", *inputs)
    finally:
        for name, kernel in saved.items():
            setattr(triton_path.kernels, name, kernel)
    return mode.bytes


def _resident(field: str) -> float:
    """MiB of VmRSS (now) or VmHWM (highest since `_forget_peak`) of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    path, num_products = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    if path == "triton":
        print(counted_bytes(num_products) / _MIB, 0.0)
        return
    _run(path, *_problem(64, torch.device("cpu")))  # imports and threads are not the op's memory
    inputs = _problem(num_products, torch.device("cpu"))
    _forget_peak()
    before, start = _resident("VmRSS"), time.process_time()
    _run(path, *inputs)
    print(_resident("VmHWM") - before, 1e3 * (time.process_time() - start))


if __name__ == "__main__":
    main()
