"""The command line of m5ds/pretrain.py: its flags, its configuration files, and its exit codes."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import m5ds.config as configuration
from m5ds.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, one_line
from m5ds.config import ConfigError, RunConfig
from m5ds.train import runtime
from m5ds.train.engine import ds_config

EXIT_DIVERGED = 3
GRACE_SECONDS = 20.0
"""How long other ranks leave it to rank 0 to report an error that all meet; the launcher ends them meanwhile."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong as every other bad input does, once and not on every rank."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; --help lists the flags")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Flags and overrides in any order. ConfigError for an unknown flag."""
    parser = Parser(prog="deepspeed m5ds/pretrain.py", description="Pretrain on shards under DeepSpeed.")
    parser.add_argument(
        "--config", default="configs/run/quickstart.yaml", help="the run YAML (default: the quickstart)"
    )
    parser.add_argument("--ds_config", default="configs/zero3.json", help="DeepSpeed's JSON (default: ZeRO-3)")
    parser.add_argument(
        "--resume",
        default="none",
        metavar="auto|none|PATH",
        help="go on from the newest complete checkpoint of this run's name (auto), from a run or tag (PATH), or start"
        " a new run beside earlier ones (none, the default)",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error in the input was noticed")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the run YAML")
    return parser.parse_intermixed_args(arguments)


def guarded(run: Callable[[], int]) -> int:
    """The exit code of `run`, which parses its arguments too; every program under the launcher reports this way."""
    show_traceback = "--traceback" in sys.argv
    try:
        return run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        if show_traceback:
            raise
        return _report(f"error: {one_line(error)}", EXIT_USER_ERROR)
    except RuntimeError as error:
        from m5ds.train.step import Diverged

        if not isinstance(error, Diverged):
            raise
        return _report(f"diverged: {one_line(error)}", EXIT_DIVERGED)


def _report(line: str, code: int) -> int:
    """Print once. When rank 0 fails too the launcher ends the others while they wait; else the failing rank speaks."""
    if int(os.environ.get("RANK", "0")) != 0:
        time.sleep(GRACE_SECONDS)
    print(line, file=sys.stderr, flush=True)
    return code


def find_file(name: str) -> Path:
    """A configuration file relative to the working directory or, failing that, to the repository."""
    path = Path(name)
    return path if path.is_file() or path.is_absolute() else _shipped(path)


def _shipped(path: Path) -> Path:
    shipped = runtime.REPOSITORY / path
    return shipped if shipped.is_file() else path


def read_configuration(arguments: argparse.Namespace) -> tuple[RunConfig, ds_config.DeepSpeedJson, frozenset[str]]:
    """The run configuration with what only the JSON says, the JSON, and the keys that the YAML gives. ConfigError."""
    # Not above: a mistyped flag should not wait for what knows the objectives.
    from m5ds.model.objectives.specs import resolved

    path = find_file(arguments.config)
    config = configuration.load(path, arguments.overrides)
    config = dataclasses.replace(config, model=resolved(config.model, str(path)))
    given = configuration.given_keys(path, arguments.overrides)
    ds = ds_config.read(find_file(arguments.ds_config))
    config = ds_config.merge(ds, config, str(path), given)
    return config, ds, given
