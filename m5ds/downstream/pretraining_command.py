"""The command line of `tools/evaluate.py pretraining`: what pretraining runs learned, one run a seed (docs/results.md).

python tools/evaluate.py pretraining --checkpoint RUN [--checkpoint RUN ...] [--splits validation test] [--out JSON]
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from m5ds.train.command import Parser

TASK = "pretraining"


def is_asked(words: Sequence[str]) -> bool:
    """Whether the command line is this task's: its first word that is no flag of a launcher is the task."""
    return next((word for word in words if not word.startswith("--local_rank")), "") == TASK


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog=f"python tools/evaluate.py {TASK}",
        description="Held-out retrieval of pretraining runs against the same seeds' initial weights.",
    )
    parser.add_argument("task", choices=(TASK,))
    parser.add_argument(
        "--checkpoint", action="append", required=True, metavar="RUN", help="a run's folder; repeat it for each seed"
    )
    parser.add_argument("--splits", nargs="+", default=["validation", "test"], help="default: validation test")
    parser.add_argument("--num-replicates", type=int, default=10_000, help="bootstrap replicates (default: 10000)")
    parser.add_argument("--batch-size", type=int, default=32, help="products of a batch (default: 32)")
    parser.add_argument("--num-threads", type=int, default=2, help="decoding threads (default: 2)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    parser.add_argument("--traceback", action="store_true", help="show where an error in the input was noticed")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    found = parser.parse_args(arguments)
    for flag, least in (("batch_size", 1), ("num_threads", 1), ("num_replicates", 20)):
        if getattr(found, flag) < least:
            raise ValueError(f"--{flag.replace('_', '-')} must be at least {least}, got {getattr(found, flag)}")
    return found


def run() -> int:
    """Compare the runs, print the tables, and write them where `--out` says. Returns the exit code."""
    arguments = parse()

    from m5ds.downstream.pretraining_evaluation import evaluate_runs, summary, write_report

    report = evaluate_runs(
        arguments.checkpoint,
        arguments.splits,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        num_replicates=arguments.num_replicates,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(summary(report))
    if arguments.out is not None:
        write_report(arguments.out, {"command": shlex.join(["python", *sys.argv]), **report})
    return 0
