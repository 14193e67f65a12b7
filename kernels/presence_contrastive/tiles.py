"""Fixed tile table of the contrastive kernels: one for launches and for the ahead-of-time check (verify/aot.py).

Shown by kernels/verify/aot.py to run without spills on every architecture (docs/kernels.md).
"""

from dataclasses import dataclass

from m5ds.kernels.common.tiles import ARCHITECTURES

KERNELS = ("fwd", "bwd_features", "bwd_keys")
WIDTHS = {2: (64, 128, 256), 4: (64, 128)}
"""By bytes of an input: output columns that one program of a backward kernel accumulates in registers. Wider features
take several programs, each of which computes the tile of logits again.
"""


@dataclass(frozen=True)
class Tile:
    """Launch configuration: query rows, key rows, columns per step of a dot product, output columns."""

    block_b: int
    block_c: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int


def column_block(width: int, itemsize: int) -> int:
    """The table's output columns for features of this width."""
    return next((entry for entry in WIDTHS[itemsize] if entry >= width), WIDTHS[itemsize][-1])


def tile(kernel: str, arch: str, itemsize: int, block_d: int) -> Tile:
    """Tile of a kernel of KERNELS for inputs of `itemsize` bytes; `KeyError` outside the table."""
    return _TABLE[kernel, arch, itemsize, block_d]


def _entry(kernel: str, arch: str, itemsize: int, block_d: int) -> Tile:
    if itemsize == 4:
        return Tile(32, 32, 32, block_d, 4 if kernel == "fwd" else 8, 1)
    if arch == "sm_80" and kernel == "bwd_features" and block_d == 256:
        return Tile(32, 64, 64, block_d, 8, 2)
    if kernel == "fwd":
        return Tile(64, 64, 64, block_d, 4, 2)
    # Features of at most 64 columns are one step of the product: there is nothing to pipeline.
    return Tile(64, 64, 64, block_d, 8, 1 if block_d == 64 else 2)


_TABLE = {
    (kernel, arch, itemsize, block_d): _entry(kernel, arch, itemsize, block_d)
    for kernel in KERNELS
    for arch in ARCHITECTURES
    for itemsize, widths in WIDTHS.items()
    for block_d in widths
}
