"""The loop's collectives on three ranks of unequal size."""

from pathlib import Path

import launching  # noqa: E402


def test_collectives_of_three_ranks(tmp_path) -> None:
    """Uneven gather with exact gradients, an error of one rank on all, sums, the list of damaged files."""
    worker = Path(__file__).with_name("worker_collectives.py")
    launching.run_ranks(worker, [str(tmp_path)], world_size=3, timeout=200)
