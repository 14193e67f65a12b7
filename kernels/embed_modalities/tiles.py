"""Fixed tile table of the embedding kernels: one for launches and for the ahead-of-time check (kernels/aot.py)."""

from dataclasses import dataclass

WIDTHS = (128, 256, 512, 1024, 2048)
"""Columns of a tile, which holds whole rows: the model's width rounded up to an entry."""
FORWARD_ROWS, BACKWARD_ROWS = 32, 64
"""Rows of one program, so that the vectors it reads or sums once (norm, modality, part) are few against its rows."""
TABLE_ROWS, TABLE_COLUMNS = 16, 128
"""Tile of the embedding tables' gradient: gathered rows of one entry, columns."""


@dataclass(frozen=True)
class Tile:
    """Launch configuration of the row kernels: rows in flight, columns."""

    rows: int
    columns: int
    num_warps: int


def tile(width: int) -> Tile:
    """The table's entry for rows of this width; `ValueError` past the table."""
    for columns in WIDTHS:
        if columns >= width:
            return Tile(max(1, 4096 // columns), columns, 4 if columns < 2048 else 8)
    raise ValueError(f"the Triton embedding kernels take widths up to {WIDTHS[-1]}, got {width}")
