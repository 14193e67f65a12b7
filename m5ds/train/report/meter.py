"""Scalars of a step: losses, shares, rates. Rates are those of this step."""

import time

import torch

from m5ds.data.batches.loader import StepBatches
from m5ds.train.engine import build as engine
from m5ds.train.job import Job
from m5ds.train.report import flops


class Meter:
    """Between `start` and `stop` lies one step of the job."""

    _started: float
    _rate: float

    def __init__(self, job: Job) -> None:
        self._job = job
        self._flops = flops.FlopCounter(job.config.model)
        self._peak = flops.device_peak(job.engine.device)

    def start(self) -> None:
        """Call before the step's batches are waited for."""
        self._started, self._rate = time.perf_counter(), float(self._job.engine.get_lr()[0])

    def stop(
        self, prepared: StepBatches, counts: dict[str, float], losses: dict[str, float], skipped: int
    ) -> dict[str, float]:
        """The scalars of the step, from its batches, counts and losses and fp16's skipped steps in a row."""
        job, names = self._job, self._job.model.names
        if job.engine.device.type == "cuda":
            torch.cuda.synchronize(job.engine.device)
        seconds = time.perf_counter() - self._started
        products = float(job.config.train.global_batch_size)
        job.totals["products"] += products
        job.totals["seconds"] += seconds
        tokens = sum(counts[f"tokens/{name}"] for name in names)
        norm = job.engine.get_global_grad_norm()
        scalars = {
            **{f"loss/{name}": value for name, value in losses.items()},
            **{f"tokens/share/{name}": counts[f"tokens/{name}"] / max(tokens, 1.0) for name in names},
            "optimizer/gradient_norm": float(norm) if norm is not None else 0.0,
            "optimizer/learning_rate": self._rate,
            "optimizer/skipped_steps": float(skipped),
            "throughput/tokens_per_second": tokens / seconds,
            "throughput/products_per_second": products / seconds,
            "data/wait_share": min(1.0, prepared.wait_seconds / seconds),
            "data/bad_media": float(job.budget.num_listed),
        }
        if self._peak is not None:
            done = sum(self._flops.count(batch) for batch in prepared.micro_batches)
            scalars["throughput/flops_utilisation"] = done / seconds / self._peak
        return scalars

    def parameters(self) -> dict[str, float]:
        """What objectives show of their parameters: a collective, so only in logged steps."""
        return engine.logged_parameters(self._job.model)
