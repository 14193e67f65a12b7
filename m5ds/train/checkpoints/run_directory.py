"""Which folder a run writes to, and the files there that say what it is.

`--resume none` (the default) never touches an earlier run: OUTPUT/NAME, or OUTPUT/NAME-2, -3, ... where that exists.
`--resume auto` goes on in the newest of these folders, or starts OUTPUT/NAME. `--resume PATH` goes on in the folder of
that run, whether PATH is the run's folder, its `checkpoints`, or one tag.
"""

import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from m5ds.config import RunConfig
from m5ds.files import write_atomically

CHECKPOINTS = "checkpoints"
BAD_MEDIA = "bad_media.jsonl"
TOKENIZER = "tokenizer"


def choose(output_dir: str, name: str, resume: str) -> Path:
    """The run's folder. It is not made here. Raises ValueError for a `--resume` path that holds no run."""
    if resume not in ("auto", "none"):
        path = Path(resume).resolve()
        path = path.parent if path.name.startswith("step-") else path
        path = path.parent if path.name == CHECKPOINTS else path
        if not (path / CHECKPOINTS).is_dir():
            raise ValueError(
                f"--resume {resume}: no run there (no folder {path / CHECKPOINTS}); use auto, none or a run"
            )
        return path
    numbers = sorted(_existing(Path(output_dir), name))
    number = (numbers or [1])[-1] + (1 if numbers and resume == "none" else 0)
    return (Path(output_dir) / (name if number == 1 else f"{name}-{number}")).resolve()


def _existing(output_dir: Path, name: str) -> list[int]:
    """1 for NAME, n for NAME-n, of those that exist."""
    found = []
    for folder in output_dir.glob(f"{name}*"):
        suffix = re.fullmatch(r"(?:-([2-9]|[1-9]\d+))?", folder.name.removeprefix(name))
        if suffix and any(folder.iterdir()):
            found.append(int(suffix[1] or 1))
    return found


def write_description(directory: Path, config: RunConfig, ds_config: dict[str, Any], identity: dict[str, Any]) -> None:
    """config.yaml and ds_config.json as resolved, and run.json: command, code, data. Each start is kept in run.json."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(config.to_dict()))
    write_atomically(directory / "ds_config.json", json.dumps(ds_config, indent=2) + "\n")
    path = directory / "run.json"
    starts = json.loads(path.read_text()) if path.is_file() else []
    start = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": shlex.join(sys.argv), **identity}
    write_atomically(path, json.dumps([*starts, start], indent=1) + "\n")
