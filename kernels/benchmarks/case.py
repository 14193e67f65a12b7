"""What a benchmark is: one problem, several ways to solve it, one of which is right by definition."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

GPUS = {"A100-SXM": (2.0e12, 312e12), "H100-SXM": (3.35e12, 989e12), "B200": (8.0e12, 2250e12)}
"""Bytes a second of memory and dense bf16 FLOPs a second, from NVIDIA's data sheets."""


def dtype_of(device: torch.device) -> torch.dtype:
    """What a benchmark computes in: bf16 or, on a GPU without it, fp16; float32 on a CPU."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@dataclass(frozen=True)
class Provider:
    """One implementation with inputs of its own, so that padding or packing is not timed."""

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    """Leaves; gradients are taken for those that require them."""
    grad: Tensor
    """Gradient of the output."""
    to_common: Callable[[Tensor], Tensor] = lambda x: x
    """Brings the output and input gradients to the reference's rows, for verification."""


@dataclass(frozen=True)
class Work:
    """What a problem asks of any implementation, whatever it does besides."""

    bytes: int
    """Inputs read once and outputs written once."""
    flops: int
    """Two per multiply-add of the matrix products; element-wise work is not counted."""


@dataclass(frozen=True)
class Estimate:
    """Closed-form traffic and work of one launch on a GPU."""

    launch: str
    bytes: int
    minimum_bytes: int
    """When every re-read hits a cache."""
    flops: int

    def bound_us(self, gpu: str) -> tuple[float, str]:
        """Roofline time in microseconds from the minimum traffic, and what bounds it."""
        bandwidth, peak = GPUS[gpu]
        memory, compute = self.minimum_bytes / bandwidth, self.flops / peak
        return 1e6 * max(memory, compute), "memory" if memory > compute else "compute"


@dataclass(frozen=True)
class Case:
    op: str
    parameters: dict[str, str | int | float]
    providers: list[Provider]
    """The first is ours."""
    tolerance: float
    """Relative RMS error of outputs and gradients against the first provider."""
    estimates: list[Estimate] = field(default_factory=list)
    work: dict[str, Work] = field(default_factory=dict)
    """By mode (`timing.MODES`), of this problem on this device."""


def forward_and_gradients(provider: Provider) -> list[Tensor]:
    """The output and all gradients, on the reference's rows."""
    out = provider.function(*provider.inputs)
    leaves = [x for x in provider.inputs if x.requires_grad]
    return [provider.to_common(x) for x in (out.detach(), *torch.autograd.grad(out, leaves, provider.grad))]


def verify(case: Case) -> None:
    """`ValueError` naming the provider that disagrees with the first."""
    expected = forward_and_gradients(case.providers[0])
    largest = max(float(wanted.double().norm()) for wanted in expected)
    for provider in case.providers[1:]:
        for i, (actual, wanted) in enumerate(zip(forward_and_gradients(provider), expected, strict=True)):
            error, size = float((actual.double() - wanted.double()).norm()), float(wanted.double().norm())
            # A gradient that is zero by definition comes out as rounding, which follows the largest one.
            allowed = case.tolerance * size + 4 * torch.finfo(torch.float32).eps * largest
            if not error <= allowed:
                what = "output" if i == 0 else f"gradient {i}"
                raise ValueError(
                    f"{case.op}, {provider.name}: {what} differs by {error:.1e} of {size:.1e} at {case.parameters}"
                )


def percentiles(samples: Iterable[float]) -> tuple[float, float, float]:
    """p20, p50, p80."""
    values = torch.tensor(sorted(samples), dtype=torch.float64)
    return tuple(float(values.quantile(q)) for q in (0.2, 0.5, 0.8))
