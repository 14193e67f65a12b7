"""Save and resume: DeepSpeed's sharded checkpoint, random states of each rank, and what a later run must know.

A tag folder holds DeepSpeed's shards, `state.json` (position, run configuration, data and code identity), one
`random_RANK.pt` a rank, `tokenizer/`, and the manifest that makes it complete (tags.py). All functions that
take an engine are collective.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m5ds.files import write_atomically
from m5ds.train import distributed
from m5ds.train.checkpoints import tags


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A complete and verified checkpoint: its folder's parent, its tag and its state."""

    root: Path
    tag: str
    state: dict[str, Any]


def save(
    engine: Any,
    root: Path,
    state: dict[str, Any],
    *,
    keep: int,
    write_extras: Callable[[Path], None],
) -> str:
    """Write tag `step-NNNNNNNN` for `state["step"]`, then drop old tags. Returns the tag's name.

    `write_extras(folder)` runs on rank 0: the tokenizer and other files of the run that the checkpoint owns.
    """
    tag = tags.tag_name(state["step"])
    folder = root / tag
    if distributed.rank() == 0:
        tags.remove(root, tag)
        folder.mkdir(parents=True)
    distributed.barrier()
    engine.save_checkpoint(str(root), tag=tag, client_state={"m5ds": state}, save_latest=False)
    torch.save(_random_state(), folder / f"random_{distributed.rank():05d}.pt")
    if distributed.rank() == 0:
        write_atomically(folder / tags.STATE, json.dumps(state, indent=1, ensure_ascii=False))
        write_extras(folder)
    distributed.barrier()
    # The files are dealt over ranks, since hashing is as slow as writing.
    names = distributed.broadcast_object(tags.list_files(folder))
    share = names[distributed.rank() :: distributed.world_size()]
    described = distributed.gather_objects(tags.describe_files(folder, share))
    if distributed.rank() == 0:
        files = {name: entry for part in described for name, entry in part.items()}
        tags.complete(root, tag, time.time(), {name: files[name] for name in names})
        tags.keep_last(root, keep)
    distributed.barrier()
    return tag


def find(path: Path) -> tuple[SavedCheckpoint | None, list[str]]:
    """The newest usable checkpoint under a run's folder or its `checkpoints`, or the one tag that `path` is.

    Its bytes are verified, the work dealt over ranks. The list says what was skipped and why.
    """
    root, wanted = locate(path)
    candidates, skipped = distributed.broadcast_object(_candidates(root, wanted))
    for tag in candidates:
        share = sorted(tag.files)[distributed.rank() :: distributed.world_size()]
        parts = distributed.gather_objects(tags.wrong_hashes(root, tag, share))
        wrong = [message for part in parts for message in part]
        if not wrong:
            state = json.loads((root / tag.name / tags.STATE).read_text())
            return SavedCheckpoint(root=root, tag=tag.name, state=state), skipped
        skipped = [*skipped, wrong[0]]
    return None, skipped


def locate(path: Path) -> tuple[Path, str | None]:
    """(folder of tags, tag or None) for a run's folder, its `checkpoints` folder, or one tag's folder."""
    if path.name.startswith("step-"):
        return path.parent, path.name
    return (path, None) if path.name == "checkpoints" else (path / "checkpoints", None)


def _candidates(root: Path, wanted: str | None) -> tuple[list[tags.Tag], list[str]]:
    if wanted is None:
        return tags.newest_first(root)
    try:
        return [tags.read(root, wanted)], []
    except ValueError as error:
        return [], [str(error)]


def check_same_run(found: SavedCheckpoint, state: dict[str, Any], world_size: int) -> list[str]:
    """Refuse a checkpoint that this run cannot continue exactly; returns the other differences, for the user to read.

    `state` is the present run's state. Raises ValueError that names the first differing key.
    """
    where = f"{found.root / found.tag}"
    if "contrastive" in found.state["config"]["model"]:
        raise ValueError(
            f"{where} was saved by a version ({found.state['code_version']}) whose losses were not declared in"
            " model.objectives (CHANGELOG.md, CHECKPOINT): resume with that version, or start anew with --resume none"
        )
    saved_ranks = found.state["world_size"]
    if saved_ranks != world_size and (found.state["zero_stage"] != 3 or state["zero_stage"] != 3):
        raise ValueError(
            f"{where} was saved by {saved_ranks} ranks under ZeRO-{found.state['zero_stage']} and this run has"
            f" {world_size}: only ZeRO-3 checkpoints can be resharded; start it with deepspeed --num_gpus {saved_ranks}"
        )
    differences = list(_differences(found.state["config"], state["config"], ""))
    for key, saved, now in differences:
        if key.startswith("model.") or key in _EXACT:
            raise ValueError(
                f"{where}: {key} was {saved!r} and is {now!r} in this run; the same value is needed to resume"
            )
    for key in ("manifest_hash", "zero_stage", "precision"):
        if found.state[key] != state[key]:
            raise ValueError(
                f"{where}: {key} was {found.state[key]} and is {state[key]} in this run; resume with the same data,"
                " ZeRO stage and precision, or start a new run with --resume none"
            )
    return [f"{key}: {saved!r} -> {now!r}" for key, saved, now in differences]


_EXACT = frozenset({"seed", "train.global_batch_size", "data.chunk_size", "data.window_chunks", "data.shuffle_pairs"})


def _differences(saved: Any, now: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(saved, dict) and isinstance(now, dict):
        names = [*saved, *(name for name in now if name not in saved)]
        parts = [_differences(saved.get(name), now.get(name), f"{key}.{name}" if key else name) for name in names]
        return [item for part in parts for item in part]
    return [] if saved == now else [(key, saved, now)]


def load(engine: Any, found: SavedCheckpoint, universal: str | None = None) -> None:
    """Put the checkpoint's weights, optimizer, schedule and this rank's random states in place. Collective.

    `universal` is the copy for another number of ranks (reshard.py). Random states then stay as they are:
    they belong to ranks, and nothing that training computes depends on them.
    """
    decays = [group["weight_decay"] for group in engine.optimizer.optimizer.param_groups] if universal else []
    path, _ = engine.load_checkpoint(str(found.root), tag=universal or found.tag)
    assert path is not None, f"DeepSpeed found nothing in {found.root / found.tag}"
    if universal is not None:
        # DeepSpeed gives every group the first one's settings, and all of them one counter that each then advances.
        optimizer = engine.optimizer.optimizer
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()
        return
    states = torch.load(found.root / found.tag / f"random_{distributed.rank():05d}.pt", weights_only=False)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _random_state() -> dict[str, Any]:
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
