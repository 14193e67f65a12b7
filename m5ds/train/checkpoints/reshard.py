"""A checkpoint for another number of ranks, through DeepSpeed's universal format (ZeRO-3 to ZeRO-3).

Whether the universal copy is read is a key of DeepSpeed's configuration, so the conversion comes before
`deepspeed.initialize`. It runs in a process of its own on rank 0's node, and the copy is removed once it is loaded.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from m5ds.train import distributed

_LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def to_universal(root: Path, tag: str) -> str:
    """Write the universal copy of a tag beside it and return its name. Collective. RuntimeError if DeepSpeed fails."""
    name = f"universal-{tag}"
    failure = None
    if distributed.rank() == 0:
        failure = _convert(root / tag, root / name)
    failure = distributed.broadcast_object(failure)
    if failure is not None:
        raise RuntimeError(f"{root / tag}: DeepSpeed could not convert it for another number of ranks:\n{failure}")
    return name


def remove(root: Path, name: str) -> None:
    """Remove the copy. Collective, since every rank reads it until here."""
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(root / name, ignore_errors=True)


def _convert(source: Path, target: Path) -> str | None:
    """None, or the end of the converter's output."""
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCH_VARIABLES}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return None if done.returncode == 0 else done.stdout[-2000:]
