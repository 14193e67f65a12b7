"""Do the interpreter tests notice a broken kernel? Break it at random and see.

    python tests/kernels/mutate.py --seed 0 [--op NAME] [--count 30] [--jobs 2]

Each mutant deletes one statement or swaps one operator inside a `triton.jit` function of any op, in a copy of the tree,
and runs that op's fast interpreter tests on it up to the first failure. Exits 1 where fewer than 95 % make a test fail
(or hang). docs/kernels.md explains survivors.
"""

import argparse
import ast
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WANTED = 0.95
_UNMUTATED_SECONDS = 1800.0
_PATIENCE = 3
"""A run that takes a minute more than this many times what it takes without a mutation hangs."""
_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}


@dataclass(frozen=True)
class Mutant:
    op: str
    path: str
    """Relative to kernels/."""
    line: int
    what: str
    source: str
    """The whole mutated file."""


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


def _is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)


def places(chosen_ops: list[str]) -> list[tuple[str, Path, int]]:
    """(op, file, number of the place in it) of all that can be mutated, in a fixed order."""
    return [
        (op, path, number)
        for op in chosen_ops
        for path in kernel_files(op)
        for number, _ in enumerate(_sites(ast.parse(path.read_text())))
    ]


def mutant(op: str, path: Path, number: int) -> Mutant:
    """The file with its place `number` mutated: a statement deleted or an operator swapped."""
    tree = ast.parse(path.read_text())
    node, action, apply = list(_sites(tree))[number]
    what = f"{action} `{ast.unparse(node)}`"
    apply()
    source = ast.unparse(ast.fix_missing_locations(tree))
    return Mutant(op, str(path.relative_to(ROOT / "kernels")), node.lineno, what, source)


def _sites(tree: ast.Module):
    """(node, what is done to it, function that does it to the tree) of every place in every kernel."""
    for function in filter(_is_kernel, ast.walk(tree)):
        for parent in ast.walk(function):
            for body in (getattr(parent, "body", []), getattr(parent, "orelse", [])):
                for i, statement in enumerate(body):
                    if isinstance(statement, ast.Assign | ast.AugAssign) or _is_call(statement):
                        yield statement, "delete", _deleter(body, i)
        for node in ast.walk(function):
            if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _SWAPS:
                yield node, "swap operator of", _swapper(node)
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
                yield node, "swap comparison of", _swapper(node)


def _is_call(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)


def _deleter(body: list[ast.stmt], i: int):
    def apply() -> None:
        body[i] = ast.Pass()

    return apply


def _swapper(node: ast.BinOp | ast.AugAssign | ast.Compare):
    def apply() -> None:
        if isinstance(node, ast.Compare):
            node.ops[0] = _SWAPS[type(node.ops[0])]()
        else:
            node.op = _SWAPS[type(node.op)]()

    return apply


def _run_pytest(folder: str, tests: list[str]) -> None:
    """In a process of its own: exit with pytest's status on the tree in `folder`, quietly."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, folder)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.exit(int(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests])))


def run_tests(tests: list[str], mutant: Mutant | None, timeout: float) -> bool:
    """True where all tests pass on a copy of the tree with the mutant in it. A hang is a failure."""
    # Every run is a fork of one process that has imported what takes longest; m5ds itself comes from the copy.
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["pytest", "torch", "torch._dynamo", "triton.language"])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "m5ds", copy / "m5ds", ignore=skip)
        shutil.copytree(ROOT / "kernels", copy / "m5ds" / "kernels", ignore=skip)
        shutil.copytree(ROOT / "tests" / "kernels", copy / "tests" / "kernels", ignore=skip)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutant:
            (copy / "m5ds" / "kernels" / mutant.path).write_text(mutant.source)
        run = forks.Process(target=_run_pytest, args=(folder, tests))
        run.start()
        run.join(timeout)
        if run.exitcode is None:
            run.kill()
            run.join()
            return False
        # 1: a test failed; 2: collection failed; below 0: the mutant crashed the interpreter. All are noticed.
        assert run.exitcode <= 2, f"pytest could not run, status {run.exitcode}: {tests}"
        return run.exitcode == 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which mutants (default: %(default)s)")
    parser.add_argument("--count", type=int, default=30, help="how many (default: %(default)s)")
    parser.add_argument("--op", choices=ops(), help="one op only; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="test runs at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    everything = places([options.op] if options.op else ops())
    drawn = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    chosen = [mutant(*place) for place in drawn]
    limits: dict[str, float] = {}
    for op in sorted({m.op for m in chosen}):
        start = time.monotonic()
        if not run_tests(tests_of(op), None, _UNMUTATED_SECONDS):
            print(f"{op}: the tests fail without any mutation", file=sys.stderr)
            return 2
        limits[op] = 60.0 + _PATIENCE * options.jobs * (time.monotonic() - start)
    survivors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        passed = pool.map(lambda m: run_tests(tests_of(m.op), m, limits[m.op]), chosen)
        for m, survived in zip(chosen, passed, strict=True):
            survivors += survived
            print(f"{'SURVIVED' if survived else 'killed':<8} {m.path}:{m.line} {m.what}", flush=True)
    killed = len(chosen) - survivors
    print(f"{killed} of {len(chosen)} mutants (of {len(everything)}) make a test fail; wanted: {WANTED:.0%}")
    return 0 if killed >= WANTED * len(chosen) else 1


if __name__ == "__main__":
    # The forked runs inherit it; it must be set before anything imports Triton.
    os.environ.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    sys.exit(main())
