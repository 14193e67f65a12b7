"""Runs mutants and reports what became of each; the same for m5ds/ and for the kernels."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mutation.edits import Edit

WANTED = 0.95
PATIENCE = 4.0
"""A run that takes half a minute more than this many times what it takes without a mutation hangs."""


@dataclass(frozen=True)
class Trial:
    edits: tuple[Edit, ...]
    what: str
    """`path:line what`, as it is printed."""

    @classmethod
    def of(cls, edit: Edit) -> "Trial":
        return cls((edit,), f"{edit.path}:{edit.line} {edit.what}")


@dataclass(frozen=True)
class Outcome:
    noticed: bool
    how: str = ""


def run_all(
    trials: Sequence[Trial], run: Callable[[Trial], Outcome], jobs: int, total: int, show: bool = False
) -> list[Trial]:
    """Run and print every trial, in order; returns those that survived."""
    survivors = []
    start = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        for trial, outcome in zip(trials, pool.map(run, trials), strict=True):
            if not outcome.noticed:
                survivors.append(trial)
            word = "killed" if outcome.noticed else "SURVIVED"
            print(f"{word:<8} {trial.what}{f' ({outcome.how})' if outcome.how else ''}", flush=True)
            if show:
                print("".join(edit.diff() for edit in trial.edits), flush=True)
    killed = len(trials) - len(survivors)
    took = f"{(time.monotonic() - start) / 60:.1f} minutes"
    print(f"{killed} of {len(trials)} mutants (of {total}) make a test fail, in {took}; wanted: {WANTED:.0%}")
    return survivors


def enough(survivors: Iterable[Trial], trials: Sequence[Trial]) -> bool:
    return len(trials) - len(list(survivors)) >= WANTED * len(trials)
