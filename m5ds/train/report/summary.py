"""What rank 0 prints when a run ends: what was learned, what it cost, where it is, how to go on."""

import shlex
from typing import Any

from m5ds.train import distributed, runtime
from m5ds.train.job import Job
from m5ds.train.report.monitor import Monitor


def opening(job: Job, ds: dict[str, Any]) -> str:
    """A few lines before the first step."""
    config, world_size = job.config, distributed.world_size()
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in job.model.parameters())
    stage = ds.get("zero_optimization", {}).get("stage", 0)
    return "\n".join(
        [
            f"run {config.name} -> {job.directory}",
            f"  model     {parameters / 1e6:.1f} M parameters, {', '.join(job.model.names)}",
            f"  data      {job.sources.shards} ({job.sources.training.num_products} products to train on)",
            f"  step      {config.train.global_batch_size} products = {world_size} ranks x"
            f" {config.train.accumulation} x {ds['train_micro_batch_size_per_gpu']};"
            f" steps {job.step} to {job.total_steps}, learning rate {config.train.learning_rate:g}",
            f"  DeepSpeed ZeRO-{stage}, {job.precision}, {ds['optimizer']['type']}, on {job.engine.device}",
        ]
    )


def closing(job: Job, monitor: Monitor, seconds: float, longer: str) -> str:
    """The final table. Collective: memory is gathered from all ranks. `longer` tells how to train on."""
    memory = distributed.gather_objects(runtime.peak_memory())
    total = sum(item["rank"] for item in memory) + memory[0]["launchers"]
    lines = [*_losses(monitor), *_retrieval(monitor)]
    rate = job.totals["products"] / max(job.totals["seconds"], 1e-9)
    ranks = "ranks" if len(memory) > 1 else "rank"
    lines += [
        "",
        f"{'time':<26}{seconds:.0f} s in all, {rate:.0f} products/s in training",
        f"{'peak memory':<26}{total / 2**30:.2f} GB ({len(memory)} {ranks}"
        f" {sum(item['rank'] for item in memory) / 2**30:.2f} GB, launchers {memory[0]['launchers'] / 2**30:.2f} GB)",
        f"{'damaged media files':<26}{job.budget.num_listed} ({job.directory / 'bad_media.jsonl'})",
        f"{'checkpoint':<26}{job.checkpoints / job.last_tag if job.last_tag else 'none'}",
        f"{'curves':<26}tensorboard --logdir {shlex.quote(str(job.directory))}",
        f"{'go on longer':<26}{longer}",
        f"{'the downstream tasks':<26}python tools/evaluate.py all --checkpoint {shlex.quote(str(job.directory))}",
    ]
    return "\n".join(lines)


def stopped(job: Job, name: str, again: str) -> str:
    """The lines after a stop on request. `again` is the command that goes on."""
    where = job.checkpoints / job.last_tag if job.last_tag else "nothing"
    return f"stopped by {name} after {job.step} of {job.total_steps} steps; saved {where}\ngo on with: {again}"


def _losses(monitor: Monitor) -> list[str]:
    lines = ["", f"{'loss':<26}{'first':>12}{'last':>12}"]
    for kind, label in (("train", "training"), ("validation", "held out")):
        ends = monitor.first_and_last(kind)
        if ends is None:
            continue
        first, last = ends
        names = [name.removeprefix("loss/") for name in last if name.startswith("loss/") and name in first]
        families: dict[str, list[str]] = {}
        for name in names:
            families.setdefault(name.partition("/")[0], []).append(name)
        for family, members in families.items():
            title = family if members == [family] else f"{family}, mean of {len(members)}"
            means = [sum(end[f"loss/{name}"] for name in members) / len(members) for end in (first, last)]
            lines.append(f"{f'{label} {title}':<26}{means[0]:>12.4f}{means[1]:>12.4f}")
    return lines


def _retrieval(monitor: Monitor) -> list[str]:
    ends = monitor.first_and_last("validation")
    if ends is None:
        return []
    first, last = ends
    pairs = [name.split("/")[1] for name in last if name.endswith("/R@1")]
    lines = [
        "",
        f"{'held-out retrieval':<26}{'R@1':>8}{'before':>8}{'chance':>8}{'ratio':>8}{'R@10':>8}{'products':>10}",
    ]
    for pair in pairs:
        value = {name: last[f"retrieval/{pair}/{name}"] for name in ("R@1", "R@10", "chance", "size")}
        before = first.get(f"retrieval/{pair}/R@1", float("nan"))
        lines.append(
            f"{pair:<26}{value['R@1']:>8.3f}{before:>8.3f}{value['chance']:>8.4f}{value['R@1'] / value['chance']:>8.1f}"
            f"{value['R@10']:>8.3f}{value['size']:>10.0f}"
        )
    if pairs:
        average, worst = last["retrieval/average/ratio"], last["retrieval/worst/ratio"]
        lines.append(f"{'average, worst':<26}{'':>24}{average:>8.1f}  worst {worst:.1f} x chance")
    if "category/P@1" in last:
        lines.append(
            f"{'fused, by category':<26}P@1 {last['category/P@1']:.3f}, mAP {last['category/mAP']:.3f},"
            f" chance {last['category/chance']:.3f}, {last['category/size']:.0f} products"
        )
    return lines
