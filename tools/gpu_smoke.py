"""The one command for the first owner of GPUs (`make gpu-smoke`): what was never run where this was written.

Runs the tests marked `gpu` (Triton kernels and the model against float64 references, GPU decoding against CPU
decoding) and the kernels' benchmarks, then short trainings on two ranks over NCCL (one, where there is one GPU): ZeRO-3
in bf16, its resume, fp16, ZeRO-2. Each step's whole output goes to a log.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from m5ds.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ["train.total_steps=20", "data.quickstart_products=600", "output_dir=runs/gpu-smoke"]


def steps(num_gpus: int) -> list[tuple[str, list[str]]]:
    """What is run, in order: a name and its command."""
    ranks = str(min(num_gpus, 2))
    launch = ["deepspeed", "--num_gpus", ranks, "m5ds/pretrain.py"]
    return [
        ("gpu tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]),
        ("kernel benchmarks", [sys.executable, "kernels/benchmarks/run.py"]),
        (f"ZeRO-3 bf16, {ranks} ranks", [*launch, "--ds_config", "configs/zero3.json", "name=bf16", *TRAIN]),
        (
            f"resume, {ranks} ranks",
            [*launch, "--ds_config", "configs/zero3.json", "--resume", "auto", "name=bf16", *TRAIN]
            + ["train.total_steps=30"],
        ),
        (f"ZeRO-3 fp16, {ranks} ranks", [*launch, "--ds_config", "configs/zero3_fp16.json", "name=fp16", *TRAIN]),
        (f"ZeRO-2, {ranks} ranks", [*launch, "--ds_config", "configs/zero2.json", "name=zero2", *TRAIN]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=int, default=1200, help="seconds for each step (default: 1200)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device is visible; `make gpu-smoke` is for a machine with GPUs, `make test` for others"
        )
    logs = ROOT / "runs" / "gpu-smoke"
    logs.mkdir(parents=True, exist_ok=True)
    num_gpus = torch.cuda.device_count()
    print(f"{num_gpus} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    failed = 0
    for number, (name, command) in enumerate(steps(num_gpus), start=1):
        log, started = logs / f"{number}.log", time.perf_counter()
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=arguments.timeout
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        failed += code != 0
        verdict = "ok" if code == 0 else f"FAILED ({'timed out' if code == -1 else f'exit code {code}'}), see {log}"
        print(f"{name:24s} {time.perf_counter() - started:6.0f} s  {verdict}", flush=True)
    print(f"{failed} steps failed" if failed else "all steps passed")
    return 1 if failed else 0


if __name__ == "__main__":
    run_tool(main)
