"""Time the ops against their torch peers.

    python kernels/benchmarks/run.py [--op NAME] [--quick | --short | --full] [--repeats N] [--csv FILE] [--plot FOLDER]
    python kernels/benchmarks/run.py --tables FILE.csv ... [--page FILE]

On a GPU: wall time (p20, p50, p80) and peak memory of forward, backward and both. On a CPU: CPU time of one thread for
the CPU paths, and for each case the kernels' closed-form GPU traffic with its roofline bound: a bound, not a
measurement. Every provider is verified against ours before it is timed. Rows are appended to one CSV, beside each time
the bytes and FLOPs that the problem asks for, the device's own copy bandwidth and matrix rate, and the share of that
roofline which was reached. `--tables` times nothing: it prints CSVs as the Markdown tables of docs/kernels.md, or
writes them into the page.
"""

import argparse
import dataclasses
import importlib
from pathlib import Path

import torch

from m5ds.cli import run_tool
from m5ds.kernels.benchmarks.case import GPUS, Case, Work, dtype_of, verify
from m5ds.kernels.benchmarks.results import Row, append_rows
from m5ds.kernels.benchmarks.roofline import Ceilings, measure_ceilings
from m5ds.kernels.benchmarks.timing import MODES, keep_freed_memory, measure

HERE = Path(__file__).parent
DEFAULT_CSV = Path("runs/benchmarks.csv")
_NOT_OPS = {"__init__", "case", "plot", "results", "roofline", "run", "tables", "timing"}


def ops() -> list[str]:
    """Every benchmark: a module of this folder with `cases(device, grid)`, or `measurements` where that is memory."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in _NOT_OPS)


def run_case(case: Case, device: torch.device, repeats: int, ceilings: Ceilings) -> list[Row]:
    """Verify, time and print one case; its CSV rows, with their roofline where the case states its work."""
    verify(case)
    rows = []
    print(f"\n{case.op} " + " ".join(f"{name}={value}" for name, value in case.parameters.items()))
    for mode in MODES:
        ours = 0.0
        for provider in case.providers:
            p20, p50, p80, peak = measure(provider, mode, device, repeats)
            ours = ours or p50
            row = Row(case.op, provider.name, mode, case.parameters, p20, p50, p80, peak)
            row = with_roofline(row, case.work.get(mode), ceilings)
            times = f"{p50:9.3f} ms [{p20:.3f}, {p80:.3f}]  {p50 / ours:5.2f} x ours"
            share = "" if row.roofline_share is None else f", {row.roofline_share:6.1%} of the roofline"
            print(f"  {mode:<8} {provider.name:<20} {times}{share}", flush=True)
            rows.append(row)
    return rows


def with_roofline(row: Row, work: Work | None, ceilings: Ceilings) -> Row:
    """The row with what the problem asks for, what the device can do, and how much of that this time is."""
    if work is None:
        return row
    bound = ceilings.bound_ms(work)
    return dataclasses.replace(
        row,
        moved_mib=work.bytes / 2**20,
        gflop=work.flops / 1e9,
        copy_gb_s=ceilings.bytes_per_second / 1e9,
        matmul_tflop_s=ceilings.flops_per_second / 1e12,
        bound_ms=bound,
        roofline_share=bound / row.p50_ms if row.p50_ms else None,
    )


def print_estimates(case: Case) -> None:
    """Closed-form traffic of the Triton kernels on this problem, and how fast a GPU could be at best."""
    for estimate in case.estimates:
        bounds = ", ".join(f"{gpu} {estimate.bound_us(gpu)[0]:.2f} us ({estimate.bound_us(gpu)[1]})" for gpu in GPUS)
        print(
            f"  GPU closed form {estimate.launch:<18} {estimate.bytes / 2**20:8.2f} MiB read and written, "
            f"{estimate.minimum_bytes / 2**20:.2f} at least, {estimate.flops / 1e9:.2f} GFLOP; bound: {bounds}"
        )


def run_op(op: str, device: torch.device, grid: str, repeats: int, path: Path, ceilings: Ceilings) -> None:
    """All cases of one op; rows are on disk after each."""
    module = importlib.import_module(f"m5ds.kernels.benchmarks.{op}")
    if hasattr(module, "measurements"):
        for row in module.measurements(device, grid):
            print(f"{row.provider:<28} {row.parameters} {row.peak_mib:10.2f} MiB {row.p50_ms:10.1f} ms", flush=True)
            append_rows(path, [row], device)
        return
    for case in module.cases(device, grid):
        append_rows(path, run_case(case, device, repeats, ceilings), device)
        print_estimates(case)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=ops(), help="one op only; default: all")
    size = parser.add_mutually_exclusive_group()
    grids = {
        "quick": "one small case an op",
        "short": "a few cases an op: what `make gpu-check` has time for",
        "full": "the whole grid on a CPU too, about an hour",
    }
    for name, meaning in grids.items():
        size.add_argument(f"--{name}", dest="grid", action="store_const", const=name, help=meaning)
    parser.add_argument("--repeats", type=int, default=20, help="timed repetitions at most (default: %(default)s)")
    parser.add_argument("--csv", type=Path, default=DEFAULT_CSV, help="file to append to (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="folder to draw the CSV's plots in")
    parser.add_argument("--tables", type=Path, nargs="+", metavar="CSV", help="print as Markdown, time nothing")
    parser.add_argument("--page", type=Path, help="with --tables: replace the page's tables instead of printing them")
    options = parser.parse_args()
    if options.tables:
        from m5ds.kernels.benchmarks.tables import fill_page, tables_of

        tables = tables_of(options.tables)
        if options.page:
            fill_page(options.page, tables)
        else:
            print("\n\n".join(f"<!-- {name} -->\n{table}" for name, table in tables.items()))
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    grid = options.grid or ("full" if device.type == "cuda" else "default")
    ceilings = measure_ceilings(device, dtype_of(device))
    print(
        f"this device copies {ceilings.bytes_per_second / 1e9:.4g} GB/s and multiplies matrices at"
        f" {ceilings.flops_per_second / 1e12:.4g} TFLOP/s",
        flush=True,
    )
    for op in [options.op] if options.op else ops():
        run_op(op, device, grid, options.repeats, options.csv, ceilings)
    if options.plot:
        from m5ds.kernels.benchmarks.plot import draw

        draw(options.csv, options.plot)
    print(f"every provider agreed with ours; times are in {options.csv}")
    return 0


if __name__ == "__main__":
    run_tool(main)
