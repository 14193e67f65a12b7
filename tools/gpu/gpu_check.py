"""Check a machine with one CUDA GPU: no network, no DALI, no installation (`make gpu-check`).

    python3 tools/gpu/gpu_check.py [--out FOLDER] [--bundle FOLDER] [--all] [--device cpu]

Tests of the kernels and the model on the device; benchmarks with their roofline; ZeRO-3 steps of the paper's model in
bf16 and fp16; a profile; hardware counters where ncu is there. One line a step. A step over its limit is killed and the
next one runs; all of it ends within nine minutes. `--all` adds GPU decoding (DALI) and the launcher on up to two GPUs,
without that limit. `--bundle` names what tools/gpu_bundle.py collected. `--device cpu` tries the same at tiny sizes.
"""

import argparse
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gpu_paths import ROOT, link_packages, unpack_wheels
from gpu_steps import TRAINING_RECORD, Step, steps

sys.path.insert(1, str(ROOT))

from m5ds.cli import run_tool  # noqa: E402

SECONDS_IN_ALL = 530
NEEDED = ("torch", "triton", "transformers", "deepspeed", "omegaconf", "pydantic", "hjson", "pytest", "pytest_timeout")
OUTPUTS = ("logs.txt", "summary.txt", "benchmarks.csv", TRAINING_RECORD, "profile.txt", "trace.json.gz")
"""Few and flat, so that they are easily brought back from a borrowed machine."""


@dataclass(frozen=True)
class Verdict:
    step: Step
    state: str
    """`ok`, `skipped` or `FAILED`."""
    seconds: float
    detail: str

    def line(self) -> str:
        return f"{self.step.name:28s} {self.state:8s} {self.seconds:5.0f} s  {self.detail}"


def run_step(step: Step, environment: dict[str, str], log: Path, seconds: float) -> Verdict:
    """Run one step for at most `seconds`, with all that it starts; its output is appended to `log`."""
    if step.skip:
        return Verdict(step, "skipped", 0.0, step.skip)
    started = time.perf_counter()
    with log.open("a") as output:
        output.write(f"\n===== {step.name}: {' '.join(step.command)}\n")
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | step.environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
    with log.open("rb") as file:
        file.seek(begin)
        said = file.read().decode(errors="replace").strip()
    last = said.splitlines()[-1].strip()[:160] if said else "no output"
    elapsed = time.perf_counter() - started
    if code is None:
        return Verdict(step, "FAILED", elapsed, f"killed after its {seconds:.0f} s; see {log}")
    if code or step.must_say not in last:
        reason = f"exit code {code}" if code else "nothing was run"
        return Verdict(step, "FAILED", elapsed, f"{reason}: {last}; see {log}")
    return Verdict(step, "ok", elapsed, last)


def _kill_group(process: subprocess.Popen) -> None:
    """What the step started and left behind ends with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(chosen: list[Step], environment: dict[str, str], out: Path, total: float | None) -> list[Verdict]:
    """Every step, its verdict printed as it ends. `total`: seconds left for all of them, None without limit."""
    started, verdicts = time.perf_counter(), []
    for step in chosen:
        left = float("inf") if total is None else total - (time.perf_counter() - started)
        if left < 5 and not step.skip:
            verdict = Verdict(step, "FAILED", 0.0, f"not run: the {total:.0f} s for all steps are over")
        else:
            verdict = run_step(step, environment, out / "logs.txt", min(step.seconds, left))
        print(verdict.line(), flush=True)
        verdicts.append(verdict)
    return verdicts


def table(out: Path, verdicts: list[Verdict]) -> str:
    """What was measured, then what became of each step."""
    return "\n".join([*_training_lines(out), *_benchmark_lines(out), "", *(verdict.line() for verdict in verdicts)])


def _training_lines(out: Path) -> list[str]:
    path = out / TRAINING_RECORD
    lines = []
    for result in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        sheet = result["utilisation_of_data_sheet"]
        lines.append(
            f"{result['config']:28s} {result['precision']}  {result['products_per_second']:9.4g} products/s"
            f"  {result['step_ms'][1]:8.4g} ms/step  FLOPs {'-' if sheet is None else f'{sheet:.1%}'} of data sheet,"
            f" {result['share_of_measured_matmul']:.1%} of measured  {result['peak_memory_gib']:.3g} GiB"
        )
    return lines


def _benchmark_lines(out: Path) -> list[str]:
    """Forward and backward of each case: ours, its share of the roofline, and the fastest peer."""
    path = out / "benchmarks.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "both" and row["roofline_share"]]
    lines = []
    for key in dict.fromkeys((row["op"], row["parameters"]) for row in rows):
        ours, *peers = [row for row in rows if (row["op"], row["parameters"]) == key]
        times = f"{float(ours['p50_ms']):9.4g} ms, {float(ours['roofline_share']):6.1%} of roofline"
        if peers:
            best = min(peers, key=lambda row: float(row["p50_ms"]))
            times += f", {best['provider']} {float(best['p50_ms']) / float(ours['p50_ms']):.2f} x ours"
        settings = " ".join(str(value) for value in json.loads(key[1]).values())
        lines.append(f"{key[0]:22s} {settings:44s} {times}")
    return lines


def prepare(folder: Path, bundle: Path | None) -> dict[str, str]:
    """The environment of the steps. `ValueError` where a package is missing, with what to do."""
    # These come before the machine's own packages: a bundle holds only what tools/gpu_machine_packages.txt lacks.
    paths = [str(link_packages(folder / "checkout"))]
    if bundle is not None:
        paths.append(str(unpack_wheels(bundle, folder / "bundle")))
    sys.path[1:1] = paths
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(
            f"{', '.join(missing)} cannot be imported by {sys.executable}; collect what is missing where there is a"
            " network with `python tools/gpu_bundle.py FOLDER`, their names taken out of the file that --assumed names,"
            " and name it here with --bundle FOLDER"
        )
    path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OUT") or ROOT / "runs" / "gpu-check")
    parser.add_argument("--out", type=Path, default=default, help="default: $OUT, or runs/gpu-check")
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="wheels that this machine lacks")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, no GPU needed")
    parser.add_argument("--all", action="store_true", help="GPU decoding and the launcher on up to two GPUs besides")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = prepare(Path(folder), options.bundle)
        import torch
        import triton

        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("no CUDA device is visible; `--device cpu` tries the same steps at tiny sizes")
        if options.device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
        num_gpus = torch.cuda.device_count() if options.device == "cuda" else 0
        out = options.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        for file in OUTPUTS:
            (out / file).unlink(missing_ok=True)
        versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}"
        print(f"{name} ({num_gpus} GPUs), {versions}; results in {out}", flush=True)
        chosen = steps(options.device, out, num_gpus=num_gpus, everything=options.all)
        total = None if options.all or options.device == "cpu" else SECONDS_IN_ALL - (time.perf_counter() - started)
        verdicts = run_all(chosen, environment, out, total)
    failed = sum(verdict.state == "FAILED" for verdict in verdicts)
    report = f"{name}, {versions}\n{table(out, verdicts)}\n{failed} of {len(verdicts)} steps failed"
    (out / "summary.txt").write_text(report + "\n")
    print(f"\n{report}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    run_tool(main)
