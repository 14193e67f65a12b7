"""One optimizer step, a pure function of (parameters, global batch) (DESIGN section 0).

Every rank: takes the step's micro-batches, counts their targets; one all-reduce tells all ranks the step's counts, a
failed loader and a request to stop; forward and backward of each micro-batch with local sums over global counts; one
all-reduce of the losses, which also tells whether any is not finite; the optimizer.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from m5ds.batch import Batch
from m5ds.cli import one_line
from m5ds.model.configuration import M5Config
from m5ds.model.masking import PRODUCTS, count_targets
from m5ds.model.objectives.pairs import pair_name
from m5ds.model.objectives.pool import ContrastivePool
from m5ds.train import distributed
from m5ds.train.checkpoints import tags

if TYPE_CHECKING:
    from m5ds.data.batches.loader import StepBatches

MAX_SKIPPED = 100
"""Consecutive steps that fp16's loss scaler may discard before the run counts as diverged."""


class Diverged(RuntimeError):
    """A loss or gradient is not finite. Raised on all ranks before the parameters change."""


class TrainStep:
    """One optimizer step of one rank."""

    def __init__(self, engine: Any, model: Any, *, seed: int, precision: str, directory: Path) -> None:
        """`model`: an M5ForPretraining, or what offers its `config`, `names`, `tasks`, `pair_names` and forward."""
        assert isinstance(model.config, M5Config)
        self.engine, self.model, self.config, self.seed = engine, model, model.config, seed
        self.precision, self.directory = precision, directory
        pairs = [pair_name(first, second) for first, second in model.pair_names]
        self.loss_names = [*model.tasks.values(), *pairs]
        self.num_skipped = 0
        """Steps that fp16's loss scaler discarded in this process, in a row."""

    def targets(self, batch: Batch) -> dict[str, int]:
        """Targets of each loss in a micro-batch. Finetuning counts others (m5ds/downstream/tasks/finetune.py)."""
        return count_targets(batch, self.config, self.seed)

    def announce(self, taken: "StepBatches | Exception", stop: int) -> dict[str, float]:
        """Sum over ranks: targets of each loss, tokens, decoded and bad files, `failed` loaders, `stop` requests.

        Raises RankError on every rank when a rank's loader failed.
        """
        failure = taken if isinstance(taken, Exception) else None
        batches = [] if isinstance(taken, Exception) else taken.micro_batches
        names = self.model.names
        local = dict.fromkeys([PRODUCTS, *self.loss_names, *(f"tokens/{name}" for name in names)], 0.0)
        for batch in batches:
            for name, count in self.targets(batch).items():
                local[name] += count
            for name in names:
                local[f"tokens/{name}"] += batch.modalities[name].num_rows
        local["decoded"] = 0 if isinstance(taken, Exception) else taken.num_decoded
        local["bad"] = 0 if isinstance(taken, Exception) else len(taken.bad_media)
        local["failed"] = failure is not None
        local["stop"] = bool(stop)
        step = distributed.sum_over_ranks(local)
        if step["failed"]:
            message = None if failure is None else one_line(failure)
            distributed.raise_first(distributed.gather_objects(message))
        return step

    def __call__(self, batches: list[Batch], announced: dict[str, float]) -> dict[str, float]:
        """Forward, backward, update. `announced` is what `announce` returned. Returns the losses over all ranks.

        Raises Diverged on every rank; the batch's product ids are then in `not_finite.json` of the run's folder.
        """
        counts = {name: int(announced[name]) for name in (PRODUCTS, *self.loss_names)}
        world_size = distributed.world_size()
        local = dict.fromkeys([*self.loss_names, "total"], 0.0)
        pool = self._contrastive_pool(batches, counts)
        for number, batch in enumerate(batches, start=1):
            gather = pool or distributed.feature_gather([batch.num_products] * world_size)
            output = self.engine(batch, counts=counts, seed=self.seed, gather=gather)
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

    def _contrastive_pool(self, batches: list[Batch], counts: dict[str, int]) -> ContrastivePool | None:
        """Under accumulation: features of the whole step and their gradients, so that the pool is the global batch."""
        if len(batches) == 1 or not self.model.pair_names:
            return None
        products = sum(batch.num_products for batch in batches)
        gather = distributed.feature_gather([products] * distributed.world_size())
        pool = ContrastivePool(self.model.contrastive.pairs, gather)
        with torch.no_grad():
            for batch in batches:
                self.engine(batch, counts=counts, seed=self.seed, gather=pool)
        pool.close()
        return pool

    def _check_applied(self, batches: list[Batch], losses: dict[str, float]) -> None:
        self.num_skipped = 0 if self.engine.was_step_applied() else self.num_skipped + 1
        if self.num_skipped > (MAX_SKIPPED if self.precision == "fp16" else 0):
            raise self._diverged("gradient", batches, losses)

    def _diverged(self, what: str, batches: list[Batch], losses: dict[str, float]) -> Diverged:
        ids = distributed.gather_objects([batch.ids for batch in batches])
        path = self.directory / "not_finite.json"
        if distributed.rank() == 0:
            report = {"what": what, "losses": {k: str(v) for k, v in losses.items()}, "ids_by_rank": ids}
            tags.write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False))
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        named = f" ({', '.join(bad)})" if bad else ""
        return Diverged(
            f"a {what}{named} is not finite; the parameters were not changed and the last checkpoint stands. {path}"
            " lists the products of the step; lower train.learning_rate or inspect them"
        )


def take(steps: "Iterator[StepBatches]") -> "StepBatches | Exception":
    """The next step's batches, or the user's error that the loader met: the other ranks must hear of it first."""
    try:
        return next(steps)
    except (ValueError, OSError) as error:
        return error
