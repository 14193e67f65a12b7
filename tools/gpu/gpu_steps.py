"""What tools/gpu/gpu_check.py runs, in order: a name, a command, a time limit, or why it is left out."""

import shutil
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

TINY = ["model.hidden_size=32", "model.num_heads=1", "model.ffn_dim=48", "model.blocks.unimodal.repeat=1"]
TINY += ["model.projection_dim=16", "train.global_batch_size=2", "data.tokenizer.vocab_size=64"]
SHORT_RUN = ["train.total_steps=20", "data.quickstart_products=600"]
TRAINING_RECORD = "training.jsonl"


@dataclass(frozen=True)
class Step:
    """One line of the report."""

    name: str
    command: list[str] = field(default_factory=list)
    seconds: int = 0
    """Killed after so long; the following steps still run."""
    skip: str = ""
    """Why it does not run; empty where it does."""
    must_say: str = ""
    """What the last line of its output holds where it did something (pytest succeeds where it skipped everything)."""
    environment: dict[str, str] = field(default_factory=dict)


def steps(device: str, out: Path, *, num_gpus: int, everything: bool) -> list[Step]:
    """`device` "cuda", or "cpu" with the same steps at tiny sizes; `everything` adds what one GPU has no nine minutes
    for."""
    chosen = _on_gpu(out) if device == "cuda" else _on_cpu(out)
    return chosen + _more(device, out, num_gpus, everything)


def _on_gpu(out: Path) -> list[Step]:
    # Triton compiles on the host: several test processes share the work.
    workers = ["-n", "4"] if find_spec("xdist") else []
    return [
        _tests(160, *workers),
        Step("kernel benchmarks", [*_benchmarks(out), "--short", "--repeats", "20"], 130),
        Step("ZeRO-3, features", _training("m5product_features", out), 60),
        Step("ZeRO-3, raw media", _training("m5product", out), 60),
        Step("ZeRO-3, fp16", [*_training("m5product_features", out), "--precision", "fp16"], 50),
        Step("profile", [*_training("m5product_features", None), "--profile", str(out)], 45),
        _counters(),
    ]


def _on_cpu(out: Path) -> list[Step]:
    interpreted = {"TRITON_INTERPRET": "1", "M5DS_GPU_TESTS_ON": "cpu"}
    return [
        _tests(300, "-k", "dropout or cross_entropy", environment=interpreted),
        Step("kernel benchmarks", [*_benchmarks(out), "--quick", "--repeats", "2"], 300),
        Step("ZeRO-3, features", [*_training("m5product_features", out), "--steps", "2", *TINY], 120),
        Step("ZeRO-3, raw media", [*_training("m5product", out), "--steps", "2", *TINY], 120),
        Step("ZeRO-3, fp16", skip="fp16 needs a GPU"),
        Step("profile", [*_training("m5product_features", None), "--profile", str(out), *TINY], 120),
        Step("hardware counters", skip="needs a GPU"),
    ]


def _tests(seconds: int, *options: str, environment: dict[str, str] | None = None) -> Step:
    files = ["tests/gpu/test_kernels_on_gpu.py", "tests/gpu/test_small_ops_on_gpu.py", "tests/gpu/test_model_on_gpu.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *options, *files]
    return Step("kernel and model tests", command, seconds, must_say=" passed", environment=environment or {})


def _benchmarks(out: Path) -> list[str]:
    return [sys.executable, "kernels/benchmarks/run.py", "--csv", str(out / "benchmarks.csv")]


def _training(name: str, out: Path | None) -> list[str]:
    command = [sys.executable, "tools/gpu/gpu_training.py", "--config", f"configs/run/{name}.yaml"]
    return command if out is None else [*command, "--record", str(out / TRAINING_RECORD)]


def _counters() -> Step:
    """Three launches of our kernels under Nsight Compute, the card's clocks left as they are."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return Step("hardware counters", skip="ncu is not on the PATH")
    benchmark = [sys.executable, "kernels/benchmarks/run.py", "--quick", "--repeats", "1", "--csv", "/dev/null"]
    ours = ["--kernel-name", "regex:^embed_(fwd|bwd)", "--launch-count", "3"]
    options = ["--clock-control", "none", "--set", "basic", *ours]
    return Step("hardware counters", [ncu, *options, *benchmark, "--op", "embed_modalities"], 35)


def _more(device: str, out: Path, num_gpus: int, everything: bool) -> list[Step]:
    """GPU decoding, and short trainings under the launcher: ZeRO-3 with its resume, fp16, ZeRO-2."""
    reason = "needs a GPU" if device != "cuda" else "" if everything else "with --all only"
    if not reason and find_spec("nvidia.dali" if find_spec("nvidia") else "nvidia") is None:
        reason = "DALI is not installed"
    decode = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu/test_decode_on_gpu.py"]
    ranks = min(max(num_gpus, 1), 2)
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "m5ds/pretrain.py"]
    train = [*SHORT_RUN, f"output_dir={out / 'runs'}"]

    def launched(name: str, ds: str, *arguments: str) -> Step:
        command = [*runner, "--ds_config", f"configs/{ds}.json", *train, *arguments]
        return Step(f"{name}, {ranks} ranks", command, 1200, skip=reason)

    return [
        Step("decoding on the GPU", decode, 1200, skip=reason, must_say=" passed"),
        launched("launcher, ZeRO-3", "zero3", "name=zero3"),
        launched("launcher, resume", "zero3", "name=zero3", "--resume", "auto", "train.total_steps=30"),
        launched("launcher, fp16", "zero3_fp16", "name=fp16"),
        launched("launcher, ZeRO-2", "zero2", "name=zero2"),
    ]
