"""Pretrain M5-MMT and its relatives under DeepSpeed:

    deepspeed m5ds/pretrain.py --ds_config configs/zero3.json [--config RUN.yaml] [--resume auto|PATH] [key=value ...]

With no other argument it runs configs/run/quickstart.yaml. Exit codes: 0 done; 2 bad input, one line says what; 3 a
loss became infinite or NaN; 128 + signal when asked to stop, after a checkpoint. docs/training.md.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

# The launcher puts this file's folder first on the path, where `m5ds/data` and others would shadow top-level modules.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from m5ds.train import runtime
from m5ds.train.checkpoints import relaunch as relaunching
from m5ds.train.checkpoints.relaunch import Relaunch
from m5ds.train.command import guarded, parse, read_configuration
from m5ds.train.stopping import StopRequest


def pretrain(arguments: argparse.Namespace) -> int:
    """A run from its configuration to its closing table. Collective. Returns the exit code."""
    started = time.perf_counter()
    stop, relaunch = StopRequest(), Relaunch()  # both note the launchers above, which may die early
    config, ds, given = read_configuration(arguments)
    runtime.start_process_group()

    # Only now what imports DeepSpeed, which asks for the environment that `prepare_environment` and the launcher made.
    from m5ds.train import distributed, sources, start
    from m5ds.train.checkpoints import run_directory
    from m5ds.train.engine import build as engine
    from m5ds.train.job import Job
    from m5ds.train.loop import train
    from m5ds.train.report import summary
    from m5ds.train.report.monitor import Monitor
    from m5ds.train.validation import HeldOut

    with stop:
        # Where the run writes, and the checkpoint that it goes on from.
        directory, saved = start.find_run(config, arguments.resume)

        # What it reads: shards, the tokenizer that it owns, loaders of this rank.
        shards = sources.shard_directory(config)
        saved_tokenizer = saved.root / saved.tag / run_directory.TOKENIZER if saved else None
        wanted_size = config.data.tokenizer.vocab_size if "data.tokenizer.vocab_size" in given else None
        tokenizer = sources.run_tokenizer(config, shards, saved_tokenizer, wanted_size)
        data = sources.open_sources(config, shards, tokenizer)

        # What follows from all that: steps, precision, DeepSpeed's configuration with every value filled in.
        plan = start.plan(config, ds, data, saved)
        with distributed.stop_together():
            if distributed.rank() == 0:
                run_directory.write_description(directory, config, plan.resolved, plan.identity)
                tokenizer.save(directory / run_directory.TOKENIZER)

        # The model with its objectives, partitioned from its first weight on, and the engine that trains it.
        model = engine.build_model(config, tokenizer, plan.resolved, resumes=saved is not None)
        job = Job.at(
            saved,
            plan,
            config=config,
            directory=directory,
            sources=data,
            model=model,
            engine=start.start_engine(model, config, plan, saved),
            validation=HeldOut(),
        )

        with Monitor(directory, first_step=job.step, total_steps=job.total_steps) as monitor:
            monitor.say(summary.opening(job, plan.resolved))
            stop_signal = train(job, monitor, stop)
        data.close()

        ranks, resuming = distributed.world_size(), relaunching.resuming(arguments, directory)
        if stop_signal:
            again = relaunch.command([*resuming, *arguments.overrides], ranks)
            text = summary.stopped(job, signal.Signals(stop_signal).name, again)
        else:
            twice = relaunching.doubled(arguments.overrides, config.train, job.total_steps)
            text = summary.closing(
                job, monitor, time.perf_counter() - started, relaunch.command([*resuming, *twice], ranks)
            )
        if monitor.enabled:
            print(text, flush=True)
        runtime.end_process_group()
    return 128 + stop_signal if stop_signal else 0


if __name__ == "__main__":
    runtime.prepare_environment()
    sys.exit(guarded(lambda: pretrain(parse())))
