"""Held-out retrieval of pretraining runs, one a seed, against the same seeds' initial weights (docs/results.md):

python tools/evaluate_run.py --run RUN [--run RUN ...] [--splits validation test] [--out JSON]
"""

import argparse
import shlex
import sys
from pathlib import Path

from m5ds.cli import run_tool
from m5ds.train import runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, help="a run's folder; repeat it for each seed")
    parser.add_argument("--splits", nargs="+", default=["validation", "test"], help="default: validation test")
    parser.add_argument("--replicates", type=int, default=10_000, help="bootstrap replicates (default: 10000)")
    parser.add_argument("--batch-size", type=int, default=32, help="products of a batch (default: 32)")
    parser.add_argument("--threads", type=int, default=2, help="decoding threads (default: 2)")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    arguments = parser.parse_args()
    for flag, least in (("batch_size", 1), ("threads", 1), ("replicates", 20)):
        if getattr(arguments, flag) < least:
            raise ValueError(f"--{flag.replace('_', '-')} must be at least {least}, got {getattr(arguments, flag)}")

    from m5ds.downstream.pretraining_evaluation import evaluate_runs, summary, write_report

    report = evaluate_runs(
        arguments.run,
        arguments.splits,
        batch_size=arguments.batch_size,
        num_threads=arguments.threads,
        num_replicates=arguments.replicates,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(summary(report))
    if arguments.out is not None:
        write_report(arguments.out, {"command": shlex.join(["python", *sys.argv]), **report})


if __name__ == "__main__":
    runtime.prepare_environment()
    run_tool(main)
