"""Do the fast tests notice a wrong m5ds? Break it at random and see.

    python tests/mutate.py --seed 0 --count 60 [--module m5ds/data/batches/order.py] [--jobs 2]
    python tests/mutate.py --apply FILE

Each mutant is one semantic change in m5ds/ (an operator, comparison, condition, constant, argument, index or dropped
statement), made in a copy of the tree. The fast tests that execute the changed line are run on it up to the first
failure. Exits 1 where fewer than 95 % make a test fail (or hang). docs/testing.md explains survivors.
"""

import os
import sys

from mutation.command import main

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(description=__doc__))
