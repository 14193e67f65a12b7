"""Time the ops against their torch peers.

    python kernels/benchmarks/run.py [--op NAME] [--quick] [--repeats N] [--csv FILE] [--plot FOLDER]

On a GPU: wall time (p20, p50, p80) and peak memory of forward, backward and both. On a CPU: CPU time of one thread for
the CPU paths, and for each case the kernels' closed-form GPU traffic with its roofline bound: a bound, not a
measurement. Every provider is verified against ours before it is timed. Rows are appended to one CSV.
"""

import argparse
import csv
import datetime
import importlib
import json
import platform
from pathlib import Path

import torch
import triton

from m5ds.cli import run_tool
from m5ds.kernels.benchmarks.case import GPUS, Case, verify
from m5ds.kernels.benchmarks.timing import MODES, measure

HERE = Path(__file__).parent
COLUMNS = (
    "op",
    "provider",
    "mode",
    "parameters",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "peak_mib",
    "device",
    "versions",
    "time",
)
_NOT_OPS = {"__init__", "case", "plot", "run", "timing"}


def ops() -> list[str]:
    """Every op with a benchmark: a module of this folder with `cases(device, quick)`."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in _NOT_OPS)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return model[0].split(":", 1)[1].strip() if model else platform.processor()


def append_rows(path: Path, rows: list[dict[str, str | float]]) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def run_case(case: Case, device: torch.device, repeats: int) -> list[dict[str, str | float]]:
    """Verify, time and print one case; its CSV rows."""
    verify(case)
    rows: list[dict[str, str | float]] = []
    print(f"\n{case.op} " + " ".join(f"{name}={value}" for name, value in case.parameters.items()))
    for mode in MODES:
        ours = 0.0
        for provider in case.providers:
            p20, p50, p80, peak = measure(provider, mode, device, repeats)
            ours = ours or p50
            print(
                f"  {mode:<8} {provider.name:<20} {p50:9.3f} ms [{p20:.3f}, {p80:.3f}]  {p50 / ours:5.2f} x ours",
                flush=True,
            )
            rows.append(
                {
                    "op": case.op,
                    "provider": provider.name,
                    "mode": mode,
                    "parameters": json.dumps(case.parameters),
                    "p20_ms": round(p20, 4),
                    "p50_ms": round(p50, 4),
                    "p80_ms": round(p80, 4),
                    "peak_mib": round(peak, 1),
                    "device": device_name(device),
                    "versions": f"torch {torch.__version__}, triton {triton.__version__}",
                    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                }
            )
    return rows


def print_estimates(case: Case) -> None:
    """Closed-form traffic of the Triton kernels on this problem, and how fast a GPU could be at best."""
    for estimate in case.estimates:
        bounds = ", ".join(f"{gpu} {estimate.bound_us(gpu)[0]:.2f} us ({estimate.bound_us(gpu)[1]})" for gpu in GPUS)
        print(
            f"  GPU closed form {estimate.launch:<18} {estimate.bytes / 2**20:8.2f} MiB read and written, "
            f"{estimate.minimum_bytes / 2**20:.2f} at least, {estimate.flops / 1e9:.2f} GFLOP; bound: {bounds}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=ops(), help="one op only; default: all")
    parser.add_argument("--quick", action="store_true", help="one small case an op")
    parser.add_argument("--repeats", type=int, default=20, help="timed repetitions (default: %(default)s)")
    parser.add_argument(
        "--csv", type=Path, default=HERE / "results.csv", help="file to append to (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, help="folder to draw the CSV's plots in")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    for op in [options.op] if options.op else ops():
        for case in importlib.import_module(f"m5ds.kernels.benchmarks.{op}").cases(device, options.quick):
            append_rows(options.csv, run_case(case, device, options.repeats))
            print_estimates(case)
    if options.plot:
        from m5ds.kernels.benchmarks.plot import draw

        draw(options.csv, options.plot)
    return 0


if __name__ == "__main__":
    run_tool(main)
