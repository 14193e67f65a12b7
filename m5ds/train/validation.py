"""Validation on the held-out split: losses of every objective, cross-modal retrieval, fused retrieval by category.

Each batch runs clean, for the features and for objectives that need no masks (their pool is the global validation
batch), and where others do need them, masked too, under the evaluation draw. Empty products that pad the last batch
are dropped.
Shape letters: N products of the split, B of a micro-batch, M modalities.
"""

from collections.abc import Iterator, Sequence

import torch

from m5ds.batch import Batch
from m5ds.inputs.media import BadMedia
from m5ds.model.m5mmt import M5Output
from m5ds.model.objectives.pool import Gathered
from m5ds.model.objectives.total import PRODUCTS
from m5ds.train import distributed
from m5ds.train.job import Job, Validation
from m5ds.train.report import retrieval
from m5ds.train.stopping import StopRequest

Report = dict[str, float]
"""`loss/NAME`, `retrieval/A->B/R@1`, `retrieval/average/ratio`, `category/P@1`, ... by name."""


class Interrupted(Exception):
    """Some rank was asked to stop. Raised on every rank."""


class HeldOut(Validation):
    """Losses and retrieval over the whole split, from before the first step on."""

    from_start = True

    @torch.no_grad()
    def measure(self, job: Job, stop: StopRequest) -> Report | None:
        """Losses, and retrieval by the states of the clean pass; nothing without a validation split.

        `retrieval/average/ratio` is R@1 over its chance, averaged over all ordered pairs; `retrieval/worst/ratio`
        is the least of them.
        """
        sums, rows = Sums(job), []
        try:
            for batch in held_out(job, stop):
                clean = sums.add(batch)
                real_B = torch.tensor([bool(product) for product in batch.ids])
                rows.append(
                    {
                        "product": batch.product_B[real_B],
                        "label": batch.label_B[real_B],
                        "present": batch.present_BM[real_B],
                        "unimodal": clean.unimodal_BMD.float().cpu()[real_B],
                        "fused": clean.fused_BMD.float().cpu()[real_B],
                    }
                )
        except Interrupted:
            return None
        if not rows:
            return {}
        gathered = distributed.gather_to_first({key: torch.cat([row[key] for row in rows]) for key in rows[0]})
        found: Report | None = None
        if gathered is not None:
            whole = {key: torch.cat([part[key] for part in gathered]) for key in gathered[0]}
            found = _retrieval(whole, job.model.names)
        return {**sums.report(), **distributed.broadcast_object(found)}


def held_out(job: Job, stop: StopRequest) -> Iterator[Batch]:
    """The micro-batches of the validation split, the model in evaluation mode meanwhile. Collective.

    Raises Interrupted on every rank where one was asked to stop. Undecodable files are listed in the job's budget, not
    counted. Nothing without a validation split.
    """
    loader = job.sources.validation
    if loader is None:
        return
    bad_media: list[BadMedia] = []
    steps, interrupted = loader.evaluation_steps(), False
    job.engine.eval()
    for _ in range(loader.num_evaluation_steps):
        with distributed.stop_together():
            prepared = next(steps)
        interrupted = bool(distributed.sum_over_ranks({"stop": float(bool(stop.requested))})["stop"])
        if interrupted:
            loader.close()
            break
        bad_media += prepared.bad_media
        for batch in prepared.micro_batches:
            yield job.prepare(batch)
    job.engine.train()
    job.budget.note(bad_media)
    if interrupted:
        raise Interrupted


class Sums:
    """Losses and other measures of a job's objectives over held-out batches."""

    def __init__(self, job: Job) -> None:
        objectives = job.model.objectives
        self._job, self._chosen = job, tuple(objectives if job.objectives is None else job.objectives)
        self._masked = tuple(name for name, one in objectives.chosen(self._chosen) if one.masked_input)
        self._clean = tuple(name for name in self._chosen if name not in self._masked)
        self._terms = objectives.term_names(self._chosen)
        self._sums = dict.fromkeys(self._terms, 0.0)
        self._targets = dict.fromkeys(self._terms, 0.0)
        self._divisor: dict[str, str] = {}
        """By the name of a measure, the term whose targets it is divided by."""

    def add(self, batch: Batch) -> M5Output:
        """Take a batch in. Returns the clean pass. Collective."""
        job = self._job
        moved = batch.to(job.engine.device)
        if self._masked:
            self._take(self._forward(moved, self._masked, masked=True))
        clean = self._forward(moved, self._clean, masked=False)
        self._take(clean)
        for name, count in job.model.count_targets(batch, job.config.seed, self._chosen).items():
            if name != PRODUCTS:
                self._targets[name] += count
        return clean

    def report(self) -> Report:
        """`loss/NAME` and measures, by their targets over all ranks; what has none is left out. Collective."""
        targets = {f"targets/{name}": value for name, value in self._targets.items()}
        summed = distributed.sum_over_ranks({**self._sums, **targets})
        found = {}
        for name in self._sums:
            count = summed[f"targets/{self._divisor.get(name, name)}"]
            if count:
                found[name if name in self._divisor else f"loss/{name}"] = summed[name] / count
        return found

    def _forward(self, batch: Batch, chosen: Sequence[str], *, masked: bool) -> M5Output:
        job = self._job
        losses = job.model.objectives.global_losses(chosen)
        sizes = [batch.num_products] * distributed.world_size()
        gather = distributed.feature_gather(sizes) if losses else None
        return job.engine(
            batch,
            # With every count 1 a loss is its local sum.
            counts=dict.fromkeys([*self._terms, PRODUCTS], 1) if chosen else None,
            seed=job.config.seed,
            masked=masked,
            chosen=chosen,
            pools={name: Gathered(loss, gather) for name, loss in losses.items()},
            measure=True,
        )

    def _take(self, output: M5Output) -> None:
        for name, value in output.losses.items():
            self._sums[name] += float(value)
        for objective, measures in output.measures.items():
            for measure, value in measures.items():
                name = f"{objective}/{measure}"
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
                self._divisor[name] = self._job.model.objectives[objective].terms[0].name


def _retrieval(table: dict[str, torch.Tensor], names: tuple[str, ...]) -> Report:
    """Products in order of their hash, so that the dealing of products to ranks does not matter."""
    order_N = torch.argsort(table["product"], stable=True)
    table = {key: value[order_N] for key, value in table.items()}
    report: Report = {"products": len(order_N)}
    ratios = []
    for pair, metrics in retrieval.cross_modal(table["unimodal"], table["present"], names).items():
        report.update({f"retrieval/{pair}/{name}": value for name, value in metrics.items()})
        ratios.append(metrics["R@1"] / metrics["chance"])
    if ratios:
        report["retrieval/average/ratio"] = sum(ratios) / len(ratios)
        report["retrieval/worst/ratio"] = min(ratios)
    embedding_NE = retrieval.fused_embedding(table["fused"], table["present"])
    present_N = table["present"].any(dim=1)
    by_category = retrieval.by_category(embedding_NE[present_N], table["label"][present_N])
    return {**report, **{f"category/{name}": value for name, value in by_category.items()}}
