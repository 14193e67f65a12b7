"""Fixed tile table of the contrastive kernels: one for launches and for the ahead-of-time check (kernels/aot.py)."""

from dataclasses import dataclass

KERNELS = ("fwd", "bwd_features", "bwd_keys")
WIDTHS = (64, 128, 256)
"""Output columns that one program of a backward kernel accumulates; wider features take several programs."""


@dataclass(frozen=True)
class Tile:
    """Launch configuration: query rows, key rows, columns per step of a dot product, output columns."""

    block_b: int
    block_c: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int


def column_block(width: int) -> int:
    """The table's entry for features of this width."""
    return next((entry for entry in WIDTHS if entry >= width), WIDTHS[-1])


def tile(kernel: str, itemsize: int, block_d: int) -> Tile:
    """Tile of a kernel of KERNELS for inputs of `itemsize` bytes; `KeyError` outside the table."""
    return _TABLE[kernel, itemsize, block_d]


def _entry(kernel: str, itemsize: int, block_d: int) -> Tile:
    if itemsize == 4:
        return Tile(32, 32, 32, block_d, 4 if block_d == 64 else 8, 1)
    return Tile(64, 64, 64, block_d, 4 if kernel == "fwd" else 8, 2)


_TABLE = {
    (kernel, itemsize, block_d): _entry(kernel, itemsize, block_d)
    for kernel in KERNELS
    for itemsize in (2, 4)
    for block_d in WIDTHS
}
