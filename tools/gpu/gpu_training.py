"""ZeRO-3 steps of the paper's model on random products: products a second, FLOPs utilisation, peak memory, a profile.

    python tools/gpu/gpu_training.py [--config RUN.yaml] [--precision bf16|fp16|fp32] [--profile FOLDER] [key=value ...]

One rank, no data on disk, no decoder. Every product has all modalities at their longest. The last line of the output
says what was reached; `--record` appends it to a JSONL file, whatever else it measured beside it.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import m5ds.config as configuration
from m5ds.batch import Batch
from m5ds.cli import run_tool
from m5ds.config import RunConfig
from m5ds.data.batches.random_batch import random_batch
from m5ds.kernels.benchmarks.case import percentiles
from m5ds.kernels.benchmarks.results import device_name
from m5ds.kernels.benchmarks.roofline import measure_ceilings
from m5ds.train import runtime
from m5ds.train.engine import ds_config
from m5ds.train.engine.precision import device_of_rank
from m5ds.train.report import flops

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WARM_UP, PROFILED, BATCHES = 3, 2, 2
MAX_SCALE_SEARCH = 20
"""fp16's loss scale starts high and halves until gradients fit: steps that it discards, at most."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a model asks of a tokenizer, without one."""

    vocab_size: int
    pad_id: int = 0
    mask_id: int = 4
    special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A step's micro-batches as the loader hands them over."""

    micro_batches: list[Batch]
    num_decoded: int = 0
    bad_media: tuple[()] = ()


def resolved_configuration(config: RunConfig, precision: str, total_steps: int) -> dict[str, Any]:
    """DeepSpeed's dict for one rank: configs/zero3.json in the precision asked for."""
    ds, on_cpu = ds_config.read(ROOT / "configs/zero3.json"), not torch.cuda.is_available()
    return ds_config.resolve(ds, config, world_size=1, total_steps=total_steps, cpu=on_cpu, precision=precision)


class Trainer:
    """An engine and batches that it takes in turn."""

    def __init__(self, config: RunConfig, precision: str, total_steps: int, directory: Path) -> None:
        from m5ds.train.engine import build as engine
        from m5ds.train.step import TrainStep

        vocabulary: Any = Vocabulary(config.data.tokenizer.vocab_size)
        ds = resolved_configuration(config, precision, total_steps)
        model = engine.build_model(config, vocabulary, ds, resumes=True)
        self.num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        self.engine = engine.initialize(model, config, ds, total_steps)
        self.device = self.engine.device
        self.step = TrainStep(self.engine, model, seed=config.seed, precision=precision, directory=directory)
        present = [[True] * len(model.names)] * config.train.global_batch_size
        size = config.data.tokenizer.vocab_size
        self.batches = [
            random_batch(config.model, present, vocab_size=size, seed=seed, full=True) for seed in range(BATCHES)
        ]

    def run(self, count: int) -> Iterator[tuple[float, dict[str, float]]]:
        """Seconds and losses of each of `count` steps, from the batch in host memory to the updated weights."""
        for number in range(count):
            batch = self.batches[number % len(self.batches)]
            started = time.perf_counter()
            counts = self.step.count(Prepared([batch]), 0)  # type: ignore[arg-type]
            losses = self.step([batch.to(self.device)], counts)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            yield time.perf_counter() - started, losses


def warm_up(trainer: Trainer, precision: str) -> int:
    """Steps that do not count: kernels are compiled, fp16's loss scale is found. The steps that the scaler discarded.

    `ValueError` where it discards every one.
    """
    discarded = 0
    for _ in trainer.run(WARM_UP if precision != "fp16" else WARM_UP + MAX_SCALE_SEARCH):
        discarded += trainer.step.num_skipped > 0
    if trainer.step.num_skipped:
        raise ValueError(f"fp16: {discarded} steps and none was applied; the gradients never fit")
    return discarded


def measure(trainer: Trainer, config: RunConfig, steps: int, dtype: torch.dtype) -> dict[str, Any]:
    """What the steps cost. Utilisation: model FLOPs over the data sheet's peak and over the measured matrix rate."""
    device = trainer.device
    ceilings = measure_ceilings(device, dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timed = list(trainer.run(steps))
    p20, p50, p80 = percentiles(seconds for seconds, _ in timed)
    done = sum(flops.FlopCounter(config.model).count(batch) for batch in trainer.batches) / len(trainer.batches)
    peak = flops.device_peak(device)
    products = config.train.global_batch_size
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else runtime.peak_memory()["rank"]
    return {
        "products": products,
        "rows": sum(rows.num_rows for rows in trainer.batches[0].modalities.values()),
        "parameters": trainer.num_parameters,
        "step_ms": [1e3 * value for value in (p20, p50, p80)],
        "products_per_second": products / p50,
        "tflop_per_step": done / 1e12,
        "utilisation_of_data_sheet": None if peak is None else done / p50 / peak,
        "share_of_measured_matmul": done / p50 / ceilings.flops_per_second,
        "peak_memory_gib": memory / 2**30,
        "loss": [losses["total"] for _, losses in (timed[0], timed[-1])],
    }


def profile(trainer: Trainer, folder: Path) -> None:
    """`profile.txt`, operators by time, and `trace.json.gz` for chrome://tracing, of a few steps."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if trainer.device.type == "cuda":
        kinds, order = [*kinds, torch.profiler.ProfilerActivity.CUDA], "self_device_time_total"
    with torch.profiler.profile(activities=kinds) as profiler:
        list(trainer.run(PROFILED))
    folder.mkdir(parents=True, exist_ok=True)
    table = profiler.key_averages().table(sort_by=order, row_limit=50, max_name_column_width=80)
    (folder / "profile.txt").write_text(f"{PROFILED} steps\n{table}\n")
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))


def sentence(result: dict[str, Any]) -> str:
    """The last line of the output."""
    utilisation = result["utilisation_of_data_sheet"]
    sheet = "" if utilisation is None else f"{utilisation:.1%} of the data sheet's peak, "
    return (
        f"{result['precision']}: {result['products_per_second']:.4g} products/s, {result['step_ms'][1]:.4g} ms a step,"
        f" {sheet}{result['share_of_measured_matmul']:.1%} of the measured matrix rate,"
        f" {result['peak_memory_gib']:.3g} GiB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/run/m5product_features.yaml")
    parser.add_argument("--precision", choices=DTYPES, help="default: what the device computes in by itself")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: %(default)s)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSONL file to append the measurements to")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="profile instead of timing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the run YAML")
    options = parser.parse_intermixed_args()
    on_gpu = torch.cuda.is_available()
    precision = options.precision or next(iter(device_of_rank().halves), "fp32")
    if precision == "fp16" and not on_gpu:
        raise ValueError("--precision fp16 needs a GPU")
    config = configuration.load(options.config, options.overrides)
    runtime.start_process_group()
    total_steps = WARM_UP + MAX_SCALE_SEARCH + options.steps + PROFILED
    trainer = Trainer(config, precision, total_steps, directory=options.profile or Path.cwd())
    discarded = warm_up(trainer, precision)
    if options.profile is not None:
        profile(trainer, options.profile)
        text = f"{PROFILED} steps in {options.profile / 'profile.txt'} and trace.json.gz"
    else:
        where = {"config": options.config.name, "precision": precision, "device": device_name(trainer.device)}
        versions = {"torch": torch.__version__, "discarded_steps": discarded}
        result = where | versions | measure(trainer, config, options.steps, DTYPES[precision])
        if options.record is not None:
            with options.record.open("a") as file:
                file.write(json.dumps(result) + "\n")
        text = sentence(result)
    runtime.end_process_group()
    print(text, flush=True)
    return 0


if __name__ == "__main__":
    runtime.prepare_environment()
    run_tool(main)
