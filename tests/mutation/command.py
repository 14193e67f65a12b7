"""The command line of tests/mutate.py."""

import argparse
import random
import sys
import threading
import time
from pathlib import Path

from mutation import coverage_map, patches, sites
from mutation.edits import Edit, Source
from mutation.selection import Selection, distance, fast_test_files, select
from mutation.trees import Tree
from mutation.trials import PATIENCE, Outcome, Trial, enough, run_all


def draw(seed: int, count: int, prefixes: list[str]) -> tuple[list[Edit], int]:
    """(`count` mutants by the seed, number of places they are drawn from)."""
    everything = [site for path in sites.files(prefixes) for site in sites.sites(Source.of(path))]
    order = random.Random(seed).sample(range(len(everything)), len(everything))
    drawn: list[Edit] = []
    for place in order:
        if len(drawn) == count:
            break
        edit = everything[place].edit()
        if edit is not None:
            drawn.append(edit)
    return drawn, len(everything)


class Asked:
    """Runs the chosen tests on one mutant, in whichever tree is free."""

    def __init__(self, trees: list[Tree], records: dict[str, dict]):
        self._free, self._records = list(trees), records
        self._lock = threading.Lock()

    def __call__(self, trial: Trial) -> Outcome:
        selection = select(trial.edits, self._records)
        if not selection.first:
            return Outcome(False, "no fast test executes it")
        with self._lock:
            tree = self._free.pop()
        try:
            return self._ask(tree, trial, selection)
        finally:
            self._free.append(tree)

    def _ask(self, tree: Tree, trial: Trial, selection: Selection) -> Outcome:
        for tests, seconds in zip((selection.first, selection.others), selection.seconds, strict=True):
            if not tests:
                continue
            files = list(dict.fromkeys(test.split("::")[0] for test in tests))
            limit = 60.0 + PATIENCE * seconds
            status = tree.run(files, trial.edits, limit, chosen=list(tests))
            if status is None:
                # Slow machine or endless loop? The same tests without the mutant tell.
                start = time.monotonic()
                tree.run(files, (), 4 * limit, chosen=list(tests))
                took = time.monotonic() - start
                if took > limit / 3:
                    status = tree.run(files, trial.edits, 3 * took + limit, chosen=list(tests))
                if status is None:
                    return Outcome(True, f"hangs; {took:.0f} s without it")
            if status == 5:
                raise RuntimeError(f"none of the tests was collected: {tests}")
            if status != 0:
                return Outcome(True)
        tests_run = len(selection.first) + len(selection.others)
        left_out = f", {selection.left_out} slower ones not asked" if selection.left_out else ""
        return Outcome(False, f"{tests_run} tests pass{left_out}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None, description: str = "") -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which mutants (default: %(default)s)")
    parser.add_argument("--count", type=int, default=60, help="how many (default: %(default)s)")
    parser.add_argument("--module", action="append", default=[], help="a file or folder (path prefix); may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="test runs at a time (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="measure anew which tests execute which lines")
    parser.add_argument(
        "--near", action="store_true", help="ask only test files that are named after the module or import it"
    )
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--show", action="store_true", help="print every mutant's diff")
    parser.add_argument("--survivors", type=Path, help="write the survivors' diffs to this file; --apply reads it")
    parser.add_argument("--apply", nargs="+", default=[], help="run these mutants instead: unified diffs or tables")
    options = parser.parse_args(arguments)
    if options.apply:
        trials = [trial for name in options.apply for trial in patches.read(Path(name))]
        total = len(trials)
    else:
        edits, total = draw(options.seed, options.count, options.module)
        trials = [Trial.of(edit) for edit in edits]
    if not trials:
        print(f"no mutants under {options.module}; name a file or folder of m5ds/", file=sys.stderr)
        return 2
    if options.list:
        for trial in trials:
            print(trial.what)
            if options.show:
                print("".join(edit.diff() for edit in trial.edits))
        return 0
    trees = [Tree() for _ in range(min(options.jobs, len(trials)))]
    try:
        files = fast_test_files()
        if options.near:
            paths = {edit.path for trial in trials for edit in trial.edits}
            files = [name for name in files if any(distance(name, path) < 2 for path in paths)]
        records = coverage_map.records(files, trees, _say, options.fresh)
        survivors = run_all(trials, Asked(trees, records), len(trees), total, options.show)
    finally:
        for tree in trees:
            tree.close()
    if options.survivors:
        options.survivors.write_text("".join(edit.diff() for trial in survivors for edit in trial.edits))
    return 0 if enough(survivors, trials) else 1
