"""Fixed tile table of the embedding kernels: one for launches and for the ahead-of-time check (verify/aot.py)."""

from dataclasses import dataclass

WIDTHS = (128, 256, 512, 1024, 2048)
"""Columns of a tile, which holds whole rows: the model's width rounded up to an entry."""
FORWARD_ROWS, BACKWARD_ROWS = 32, 64
"""Rows of one program, so that the vectors it reads or sums once (norm, modality, part) are few against its rows."""
_ELEMENTS = 1024
"""Elements of a row kernel's tile, four a thread: with eight, registers allow the backward one block an SM."""


@dataclass(frozen=True)
class Tile:
    """Launch configuration of a kernel: rows in flight, columns."""

    rows: int
    columns: int
    num_warps: int = 8


TABLE_TILE = Tile(16, 128, 4)
"""The embedding tables' gradient: gathered rows of one entry, columns."""


def tile(width: int) -> Tile:
    """The table's entry for rows of this width; `ValueError` past the table."""
    for columns in WIDTHS:
        if columns >= width:
            if columns == 512:
                # two rows in eight warps spill in the backward of float32 on sm_100
                return Tile(1, columns, 4)
            return Tile(max(1, _ELEMENTS // columns), columns)
    raise ValueError(f"the Triton embedding kernels take widths up to {WIDTHS[-1]}, got {width}")
