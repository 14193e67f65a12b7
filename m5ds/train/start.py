"""How pretraining and finetuning start: where a run writes, what it goes on from, what its engine is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m5ds.config import RunConfig
from m5ds.train import distributed, runtime
from m5ds.train.checkpoints import checkpoint, reshard, run_directory
from m5ds.train.engine import build as engine
from m5ds.train.engine import ds_config
from m5ds.train.engine.precision import Precision, choose
from m5ds.train.sources import Sources


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What follows from configuration, data and ranks."""

    total_steps: int
    resolved: dict[str, Any]
    """DeepSpeed's JSON with every value filled in."""
    precision: Precision
    identity: dict[str, Any]
    """What a checkpoint's state says besides the step (checkpoint.check_same_run)."""


def find_run(config: RunConfig, resume: str) -> tuple[Path, checkpoint.SavedCheckpoint | None]:
    """The run's folder and the checkpoint that `--resume` means, None for a new run. Collective.

    `ValueError` where the flag names a folder without a usable checkpoint.
    """
    with distributed.stop_together():
        chosen = run_directory.choose(config.output_dir, config.name, resume)
    directory: Path = distributed.broadcast_object(chosen)
    if resume == "none":
        return directory, None
    found, skipped = checkpoint.find(directory if resume == "auto" else Path(resume))
    if found is None and resume != "auto":
        raise ValueError(f"--resume {resume}: no usable checkpoint: {'; '.join(skipped) or 'none there'}")
    for reason in skipped if distributed.rank() == 0 else []:
        print(f"skipped checkpoint: {reason}", flush=True)
    return directory, found


def plan(
    config: RunConfig,
    ds: ds_config.DeepSpeedJson,
    opened: Sources,
    found: checkpoint.SavedCheckpoint | None,
    **more: Any,
) -> Plan:
    """Steps, DeepSpeed's configuration and what a checkpoint says of the run. Collective.

    `ValueError`: `found` is of another run, or the JSON asks for what the devices or the batch do not allow.
    """
    train = config.train
    epochs = train.epochs or 0  # exactly one of total_steps and epochs is set
    total_steps = train.total_steps or max(1, epochs * opened.training.num_products // train.global_batch_size)
    world_size, on_cpu = distributed.world_size(), not torch.cuda.is_available()
    precision = choose(ds.tree, ds.path, found.state["precision"] if found else None)
    resolved = ds_config.resolve(
        ds, config, world_size=world_size, total_steps=total_steps, cpu=on_cpu, precision=precision.name
    )
    identity = {
        "config": config.to_dict(),
        "world_size": world_size,
        "zero_stage": ds.stage,
        "precision": precision.name,
        "shards": opened.shards,
        "manifest_hash": opened.manifest_hash,
        "code_version": runtime.code_version(),
        **more,
    }
    if found is not None:
        changed = checkpoint.check_same_run(found, identity, world_size)
        if distributed.rank() == 0:
            print(f"resuming {found.root / found.tag}" + "".join(f"\n  changed {line}" for line in changed), flush=True)
    return Plan(total_steps=total_steps, resolved=resolved, precision=precision, identity=identity)


def start_engine(model: Any, config: RunConfig, planned: Plan, found: checkpoint.SavedCheckpoint | None) -> Any:
    """The DeepSpeed engine at the step of `found`, which any number of ranks may have saved. Collective."""
    resolved, universal = planned.resolved, None
    if found is not None and found.state["world_size"] != distributed.world_size():
        universal = reshard.to_universal(found.root, found.tag)
        resolved = {**resolved, "checkpoint": {**resolved.get("checkpoint", {}), "load_universal": True}}
    started = engine.initialize(model, config, resolved, planned.total_steps)
    if found is not None:
        checkpoint.load(started, found, universal)
    if found is not None and universal is not None:
        reshard.remove(found.root, universal)
    return started
