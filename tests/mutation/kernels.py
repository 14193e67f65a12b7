"""The command line of tests/kernels/mutate.py: mutants of the Triton kernels against the interpreter's tests."""

import argparse
import ast
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mutation import operators
from mutation.edits import ROOT, Edit, Source
from mutation.sites import Site, short
from mutation.trees import FAILED, PASSED, Tree
from mutation.trials import PATIENCE, Outcome, Trial, enough, run_all

_UNMUTATED_SECONDS = 1800.0
_PRELOADED = ("pytest", "torch", "torch._dynamo", "triton.language")
_COLLECTION_FAILED = 2


def kernel_files(op: str) -> list[Path]:
    """Files of the op that hold Triton kernels."""
    return sorted(p for p in (ROOT / "kernels" / op).glob("*.py") if "@triton.jit" in p.read_text())


def tests_of(op: str) -> list[str]:
    """Interpreter tests that import the op, relative to the root: values first, which notice most, then traffic."""
    found = sorted((ROOT / "tests/kernels/interpreter").glob("test_*.py"), key=lambda p: ("traffic" in p.name, p.name))
    return [str(p.relative_to(ROOT)) for p in found if f"m5ds.kernels.{op} " in p.read_text()]


def ops() -> list[str]:
    return sorted(
        p.name for p in (ROOT / "kernels").iterdir() if p.is_dir() and kernel_files(p.name) and tests_of(p.name)
    )


def op_of(edit: Edit) -> str:
    return Path(edit.path).parts[1]


def sites(chosen_ops: list[str]) -> list[Site]:
    """All that can be mutated, in a fixed order."""
    return [site for op in chosen_ops for path in kernel_files(op) for site in _sites(Source.of(path))]


def _is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)


def _sites(source: Source) -> Iterator[Site]:
    """A statement deleted, or an operator or comparison swapped, in every kernel."""
    for function in filter(_is_kernel, ast.walk(source.tree)):
        for parent in ast.walk(function):
            for statement in (*getattr(parent, "body", []), *getattr(parent, "orelse", [])):
                if isinstance(statement, ast.Assign | ast.AugAssign) or operators.is_call(statement):
                    yield from _at(source, statement, operators.delete)
        for node in ast.walk(function):
            # `is` compares what is known when a kernel is compiled: arguments that are there or not.
            if not isinstance(node, ast.Compare) or not isinstance(
                node.ops[0], ast.Is | ast.IsNot | ast.In | ast.NotIn
            ):
                yield from _at(source, node, operators.swap_operator)
                yield from _at(source, node, operators.negate_comparison)


def _at(source: Source, node: ast.AST, function) -> Iterator[Site]:
    for make, what in function(node):
        yield Site(source, node, make, f"{what} `{short(node)}`", ())


def main(arguments: list[str] | None = None, description: str = "") -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which mutants (default: %(default)s)")
    parser.add_argument("--count", type=int, default=30, help="how many (default: %(default)s)")
    parser.add_argument("--op", choices=ops(), help="one op only; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="test runs at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    everything = sites([options.op] if options.op else ops())
    drawn = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    trials = [
        Trial((edit,), f"{edit.path}:{edit.line} {edit.what}") for edit in (site.edit() for site in drawn) if edit
    ]
    trees = [Tree(_PRELOADED) for _ in range(options.jobs)]
    try:
        limits: dict[str, float] = {}
        for op in sorted({op_of(edit) for trial in trials for edit in trial.edits}):
            start = time.monotonic()
            if trees[0].run(tests_of(op), (), _UNMUTATED_SECONDS) != PASSED:
                print(f"{op}: the tests fail without any mutation", file=sys.stderr)
                return 2
            limits[op] = 60.0 + PATIENCE * options.jobs * (time.monotonic() - start)

        def run(trial: Trial) -> Outcome:
            op, tree = op_of(trial.edits[0]), trees.pop()
            try:
                status = tree.run(tests_of(op), trial.edits, limits[op])
            finally:
                trees.append(tree)
            # Below 0: the mutant crashed the interpreter. None: it hangs. Both are noticed.
            assert status is None or status <= _COLLECTION_FAILED, f"pytest could not run, status {status}: {op}"
            return Outcome(status != PASSED)

        survivors = run_all(trials, run, options.jobs, len(everything))
    finally:
        for tree in trees:
            tree.close()
    return 0 if enough(survivors, trials) else FAILED
