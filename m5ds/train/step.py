"""One optimizer step, a pure function of (parameters, global batch) (DESIGN section 0).

Every rank: takes the step's micro-batches, counts their targets; one all-reduce tells all ranks the step's counts, a
failed loader and a request to stop; forward and backward of each micro-batch with local sums over global counts; one
all-reduce of the losses, which also tells whether any is not finite; the optimizer.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from m5ds.batch import Batch
from m5ds.cli import one_line
from m5ds.data.batches.loader import StepBatches
from m5ds.files import write_atomically
from m5ds.model.m5mmt import M5ForPretraining, M5Output
from m5ds.model.objectives.pool import Collected, Gathered, Pool
from m5ds.model.objectives.total import PRODUCTS
from m5ds.train import distributed

MAX_SKIPPED = 100
"""Consecutive steps that fp16's loss scaler may discard before the run counts as diverged."""


class Diverged(RuntimeError):
    """A loss or gradient is not finite. Raised on all ranks before the parameters change."""


class TrainStep:
    """One optimizer step of one rank."""

    def __init__(
        self,
        engine: Any,
        model: M5ForPretraining,
        *,
        seed: int,
        precision: str,
        directory: Path,
        objectives: Sequence[str] | None = None,
    ) -> None:
        """`objectives`: those of the model's to minimise; None: all."""
        self.engine, self.model, self.seed = engine, model, seed
        self.precision, self.directory = precision, directory
        self.chosen = tuple(model.objectives if objectives is None else objectives)
        self.masked = any(one.masked_input for _, one in model.objectives.chosen(self.chosen))
        self.loss_names = model.objectives.term_names(self.chosen)
        self.num_skipped = 0
        """Steps that fp16's loss scaler discarded in this process, in a row."""

    def count(self, prepared: StepBatches | Exception, stop: int) -> dict[str, float]:
        """Sum over ranks: targets of each loss, rows, decoded and bad files, `failed` loaders, `stop` requests.

        Raises RankError on every rank when a rank's loader failed.
        """
        failure = prepared if isinstance(prepared, Exception) else None
        batches = [] if isinstance(prepared, Exception) else prepared.micro_batches
        names = self.model.names
        local = dict.fromkeys([PRODUCTS, *self.loss_names, *(f"tokens/{name}" for name in names)], 0.0)
        for batch in batches:
            for name, count in self.model.count_targets(batch, self.seed, self.chosen).items():
                local[name] += count
            for name in names:
                local[f"tokens/{name}"] += batch.modalities[name].num_rows
        local["decoded"] = 0 if isinstance(prepared, Exception) else prepared.num_decoded
        local["bad"] = 0 if isinstance(prepared, Exception) else len(prepared.bad_media)
        local["failed"] = failure is not None
        local["stop"] = bool(stop)
        counts = distributed.sum_over_ranks(local)
        if counts["failed"]:
            message = None if failure is None else one_line(failure)
            distributed.raise_first(distributed.gather_objects(message))
        return counts

    def __call__(self, batches: list[Batch], step_counts: dict[str, float]) -> dict[str, float]:
        """Forward, backward, update. `step_counts` is what `count` returned. Returns the losses over all ranks.

        Raises Diverged on every rank; the batch's product ids are then in `not_finite.json` of the run's folder.
        """
        counts = {name: int(step_counts[name]) for name in (PRODUCTS, *self.loss_names)}
        world_size = distributed.world_size()
        local = dict.fromkeys([*self.loss_names, "total"], 0.0)
        pools = self._pools(batches, counts)
        for number, batch in enumerate(batches, start=1):
            output = self._forward(batch, counts, self.chosen, pools)
            assert output.loss is not None
            # DeepSpeed averages over ranks and accumulation steps; the counts are those of the whole step already.
            self.engine.backward(output.loss * (world_size * len(batches)))
            values = torch.stack([output.losses[name].detach().float() for name in self.loss_names])
            for name, value in zip(self.loss_names, values.tolist(), strict=True):
                local[name] += value
            local["total"] += output.loss.item()
            if number < len(batches):
                self.engine.step()
        losses = distributed.sum_over_ranks(local)
        if not all(math.isfinite(value) for value in losses.values()):
            raise self._diverged("loss", batches, losses)
        self.engine.step()
        self._check_applied(batches, losses)
        return losses

    def _forward(
        self, batch: Batch, counts: dict[str, int], chosen: Sequence[str], pools: Mapping[str, Pool]
    ) -> M5Output:
        return self.engine(batch, counts=counts, seed=self.seed, masked=self.masked, chosen=chosen, pools=pools)

    def _pools(self, batches: list[Batch], counts: dict[str, int]) -> Mapping[str, Pool]:
        """How objectives that compare products see the global batch; under accumulation by a first pass over it."""
        losses = self.model.objectives.global_losses(self.chosen)
        if not losses:
            return {}
        products = sum(batch.num_products for batch in batches)
        gather = distributed.feature_gather([products] * distributed.world_size())
        if len(batches) == 1:
            return {name: Gathered(loss, gather) for name, loss in losses.items()}
        collected = {name: Collected(loss, gather) for name, loss in losses.items()}
        with torch.no_grad():
            for batch in batches:
                self._forward(batch, counts, tuple(collected), collected)
        return {name: pool.close() for name, pool in collected.items()}

    def _check_applied(self, batches: list[Batch], losses: dict[str, float]) -> None:
        self.num_skipped = 0 if self.engine.was_step_applied() else self.num_skipped + 1
        if self.num_skipped > (MAX_SKIPPED if self.precision == "fp16" else 0):
            raise self._diverged("gradient", batches, losses)

    def _diverged(self, what: str, batches: list[Batch], losses: dict[str, float]) -> Diverged:
        ids = distributed.gather_objects([batch.ids for batch in batches])
        path = self.directory / "not_finite.json"
        if distributed.rank() == 0:
            report = {"what": what, "losses": {k: str(v) for k, v in losses.items()}, "ids_by_rank": ids}
            write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False))
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        named = f" ({', '.join(bad)})" if bad else ""
        return Diverged(
            f"a {what}{named} is not finite; the parameters were not changed and the last checkpoint stands. {path}"
            " lists the products of the step; lower train.learning_rate or inspect them"
        )


def next_step(steps: Iterator[StepBatches]) -> StepBatches | Exception:
    """The next step's batches, or the user's error that the loader met: the other ranks must hear of it first."""
    try:
        return next(steps)
    except (ValueError, OSError) as error:
        return error
