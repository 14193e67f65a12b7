"""Fixed tile tables of the attention kernels. One table serves launches and the ahead-of-time check (verify/aot.py).

No autotuning: its winners differ between ranks and between runs (FINDINGS.md). BLOCK_M query rows, BLOCK_N key rows.
"""

from dataclasses import dataclass

import torch

HEAD_DIMS = (32, 64, 96, 128)
"""Head dims that the Triton attention kernels are built for."""
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
ATTENTION_KERNELS = ("fwd", "bwd_dq", "bwd_dkdv")
SIZES = ("short", "long")
"""Tiles for segments of a few dozen rows and for long ones; `tables.py` picks one for a launch by counting the work."""


@dataclass(frozen=True)
class Tile:
    """Launch configuration of one kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def architecture(device: torch.device) -> str:
    """The table's architecture for a device: the newest one that is not newer than the device (CPU: sm_80)."""
    if device.type != "cuda":
        return ARCHITECTURES[0]
    major, _ = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"the Triton attention kernels need compute capability 8.0 or newer, {device} has {major}.x")
    return "sm_100" if major >= 10 else f"sm_{major}0"


def padded_head_dim(head_dim: int) -> int:
    """Tiles are powers of two wide; 96 travels in 128 lanes of which 32 are masked."""
    return 1 << (head_dim - 1).bit_length()


def attention_tile(kernel: str, arch: str, head_dim: int, itemsize: int, size: str) -> Tile:
    """Tile of `kernel` (ATTENTION_KERNELS) for inputs of `itemsize` bytes; `KeyError` outside the table."""
    return _ATTENTION[kernel, arch, padded_head_dim(head_dim), itemsize, size]


def _two_bytes(kernel: str, arch: str, dim: int, size: str) -> Tile:
    """bf16 and fp16 on tensor cores. A short segment is one or two steps, too few to pipeline: one stage, except where
    ptxas spills with one and not with two.
    """
    wide = dim == 128
    if size == "short":
        return Tile(32, 32, 4, 2 if wide and kernel == "bwd_dkdv" else 1)
    if kernel == "fwd":
        return Tile(64, 64, 8, 2) if wide and arch == "sm_80" else Tile(128, 64, 8, 2)
    if kernel == "bwd_dq":
        return Tile(64, 64, 8 if wide else 4, 2)
    if arch == "sm_80":
        return Tile(32, 64, 8 if wide else 4, 2)
    return Tile(32 if wide else 64, 64, 8, 2)


def _four_bytes(kernel: str, dim: int, size: str) -> Tile:
    """fp32 with IEEE products has no tensor cores, and its operands fill registers: small tiles, one stage."""
    if dim == 128 or size == "short":
        return Tile(16, 16, 8 if kernel == "bwd_dq" and dim == 128 else 4, 1)
    return Tile(32, 32, 8, 1) if kernel == "bwd_dq" else Tile(32, 16, 8, 1)


_ATTENTION = {
    (kernel, arch, dim, itemsize, size): (
        _two_bytes(kernel, arch, dim, size) if itemsize == 2 else _four_bytes(kernel, dim, size)
    )
    for kernel in ATTENTION_KERNELS
    for arch in ARCHITECTURES
    for dim in (32, 64, 128)
    for itemsize in (2, 4)
    for size in SIZES
}
"""By kernel, architecture, padded head dim, bytes an element, size class. verify/aot.py shows that none spills."""
