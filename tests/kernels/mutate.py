"""Do the interpreter tests notice a broken kernel? Break it at random and see.

    python tests/kernels/mutate.py --seed 0 [--op NAME] [--count 30] [--jobs 2]

Each mutant deletes one statement or swaps one operator inside a `triton.jit` function of any op, in a copy of the tree,
and runs that op's fast interpreter tests on it up to the first failure. Exits 1 where fewer than 95 % make a test fail
(or hang). docs/kernels.md explains survivors.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutation.kernels import main  # noqa: E402

if __name__ == "__main__":
    # The forked runs inherit it; it must be set before anything imports Triton.
    os.environ.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    sys.exit(main(description=__doc__))
