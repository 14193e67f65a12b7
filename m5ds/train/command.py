"""The command line of m5ds/pretrain.py, from arguments to exit code."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import m5ds.config as configuration
from m5ds.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR, one_line
from m5ds.config import ConfigError, RunConfig
from m5ds.train import ds_config, runtime
from m5ds.train.checkpoints import relaunch as relaunching
from m5ds.train.checkpoints.relaunch import Relaunch
from m5ds.train.stopping import StopRequest

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


def main() -> int:
    """Run and return the exit code. Errors in the input are one line on rank 0's stderr."""
    return guarded(lambda: _run(parse()))


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
    path = find_file(arguments.config)
    config = configuration.load(path, arguments.overrides)
    given = configuration.given_keys(path, arguments.overrides)
    ds = ds_config.read(find_file(arguments.ds_config))
    config = ds_config.merge(ds, config, str(path), given)
    return config, ds, given


def _run(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    stop, relaunch = StopRequest(), Relaunch()  # both note the launchers above, which may die early
    config, ds, given = read_configuration(arguments)
    runtime.start_process_group()

    from m5ds.train import distributed
    from m5ds.train.loop import train
    from m5ds.train.report import summary
    from m5ds.train.report.monitor import Monitor

    with stop:
        job, resolved = prepare(arguments, config, ds, given)
        with Monitor(job.directory, first_step=job.step, total_steps=job.total_steps) as monitor:
            monitor.say(summary.opening(job, resolved))
            stop_signal = train(job, monitor, stop)
        job.sources.close()
        ranks, resuming = distributed.world_size(), relaunching.resuming(arguments, job.directory)
        again = relaunch.command([*resuming, *arguments.overrides], ranks)
        if stop_signal:
            text = summary.stopped(job, signal.Signals(stop_signal).name, again)
        else:
            twice = relaunching.doubled(arguments.overrides, config.train, job.total_steps)
            longer = relaunch.command([*resuming, *twice], ranks)
            text = summary.closing(job, monitor, time.perf_counter() - started, longer)
        if monitor.enabled:
            print(text, flush=True)
        runtime.end_process_group()
    return 128 + stop_signal if stop_signal else 0


def prepare(
    arguments: argparse.Namespace, config: RunConfig, ds: ds_config.DeepSpeedJson, given: frozenset[str]
) -> tuple[Any, dict[str, Any]]:
    """The job, at the step that it goes on from, and DeepSpeed's resolved configuration. Collective."""
    from m5ds.train import distributed, engine, sources, start
    from m5ds.train.checkpoints import run_directory
    from m5ds.train.faults import BadMediaBudget
    from m5ds.train.loop import Job

    directory, found = start.find_run(config, arguments.resume)
    shards = sources.shard_directory(config)
    saved = found.root / found.tag / run_directory.TOKENIZER if found else None
    wanted = config.data.tokenizer.vocab_size if "data.tokenizer.vocab_size" in given else None
    tokenizer = sources.run_tokenizer(config, shards, saved, wanted)
    opened = sources.open_sources(config, shards, tokenizer)
    planned = start.plan(config, ds, opened, found)
    with distributed.stop_together():
        if distributed.rank() == 0:
            run_directory.write_description(directory, config, planned.resolved, planned.facts)
            tokenizer.save(directory / run_directory.TOKENIZER)
    model = engine.build_model(config, tokenizer, planned.resolved, resumes=found is not None)
    deepspeed_engine = start.start_engine(model, config, planned, found)
    counts = (found.state["num_decoded"], found.state["num_bad"]) if found else (0, 0)
    job = Job(
        config=config,
        directory=directory,
        sources=opened,
        model=model,
        engine=deepspeed_engine,
        precision=planned.precision,
        total_steps=planned.total_steps,
        step=found.state["step"] if found else 0,
        facts=planned.facts,
        budget=BadMediaBudget(directory / "bad_media.jsonl", config.data.max_bad_fraction, counts),
        last_tag=found.tag if found else None,
    )
    return job, planned.resolved
