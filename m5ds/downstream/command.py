"""The command line of tools/finetune.py, from arguments to exit code."""

import argparse
import dataclasses
import json
import signal
from pathlib import Path

from m5ds.config import given_keys
from m5ds.train import runtime
from m5ds.train.command import Parser, find_file, guarded

TASKS = ("classification", "clustering", "coarse_retrieval", "instance_retrieval", "robustness")
CONFIG = "configs/downstream/quickstart.yaml"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="deepspeed tools/finetune.py", description="The downstream tasks from a pretrained checkpoint."
    )
    parser.add_argument("task", choices=TASKS)
    add_checkpoint_arguments(parser)
    parser.add_argument("--config", default=CONFIG, help=f"the downstream YAML (default: {CONFIG})")
    parser.add_argument(
        "--ds_config",
        default="configs/zero3.json",
        help="DeepSpeed's JSON; classification only (default: ZeRO-3, bf16)",
    )
    parser.add_argument(
        "--resume", default="none", metavar="auto|none|PATH", help="classification only, as in pretraining"
    )
    parser.add_argument("--out", help="folder of the result (default: OUTPUT_DIR/NAME/TASK-STAGE)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the YAML")
    return parser.parse_intermixed_args(arguments)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """What every tool over a checkpoint takes."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="a run's folder, one step-NNNNNNNN in it, or a Hugging Face one",
    )
    parser.add_argument("--shards", help="shard directory (default: the one that the run was trained on)")
    parser.add_argument("--untrained", action="store_true", help="use the run's initial weights, as a baseline")
    parser.add_argument("--traceback", action="store_true", help="show where an error in the input was noticed")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")


def main() -> int:
    """Run and return the exit code; errors in the input are one line on rank 0's stderr."""
    return guarded(lambda: _run(parse()))


def shards_of(arguments: argparse.Namespace, pretrained) -> str:
    """--shards, or the run's own. `ValueError` where neither is known."""
    if arguments.shards is not None:
        return arguments.shards
    if pretrained.state is None:
        raise ValueError(f"--shards: {pretrained.source} does not say what it was trained on; name a shard directory")
    return pretrained.state["shards"]


def _run(arguments: argparse.Namespace) -> int:
    from m5ds.downstream import settings as downstream_settings
    from m5ds.train import ds_config

    path = find_file(arguments.config)
    settings = downstream_settings.load(path, arguments.overrides)
    ds = ds_config.read(find_file(arguments.ds_config))
    settings = ds_config.merge(ds, settings, str(path), given_keys(path, arguments.overrides))
    runtime.start_process_group()

    from m5ds.downstream import jobs
    from m5ds.downstream.pretrained import load_pretrained
    from m5ds.downstream.results import write_result
    from m5ds.downstream.robustness import evaluate_robustness

    pretrained = load_pretrained(arguments.checkpoint, untrained=arguments.untrained)
    shards = shards_of(arguments, pretrained)
    stage = jobs.stage_of(pretrained, arguments.untrained)
    if arguments.task == "classification":
        code = _classification(arguments, settings, ds, pretrained, shards, stage)
    else:
        if arguments.task == "robustness":
            result = evaluate_robustness(settings, pretrained, shards, stage=stage)
        else:
            result = jobs.evaluate_task(arguments.task, settings, pretrained, shards, stage=stage)
        code = 0
        if result is not None:
            out = Path(arguments.out) if arguments.out else jobs.default_output(settings, arguments.task, stage)
            write_result(out, result)
            print(summary(result, out), flush=True)
    runtime.end_process_group()
    return code


def _classification(arguments, settings, ds, pretrained, shards: str, stage: str) -> int:
    from m5ds.downstream import finetune, jobs
    from m5ds.downstream.pretrained import load_pretrained
    from m5ds.downstream.results import write_result
    from m5ds.train.monitor import Monitor
    from m5ds.train.stopping import StopRequest

    if pretrained.head is not None:
        raise ValueError(f"{pretrained.source}: is finetuned already; pass its pretraining run as --checkpoint")
    classes = jobs.class_choice(settings, shards)
    model = finetune.build_classifier(settings, pretrained, classes)
    beginning = dataclasses.replace(pretrained, head=model.head)
    start = jobs.classification_table(settings, beginning, shards, name="before finetuning")
    with StopRequest() as stop:
        job = finetune.prepare(settings, pretrained, model, classes, shards, ds, arguments.resume)
        with Monitor(job.directory, first_step=job.step, total_steps=job.total_steps) as monitor:
            monitor.say(finetune.describe(job))
            stop_signal = finetune.finetune(job, monitor, stop)
        job.sources.close()
    if stop_signal:
        if monitor.enabled:
            name = signal.Signals(stop_signal).name
            print(
                f"stopped by {name} after {job.step} of {job.total_steps} steps; go on with --resume auto", flush=True
            )
        return 128 + stop_signal
    finetuned = load_pretrained(job.directory)
    table = jobs.classification_table(settings, finetuned, shards)
    if table is not None:
        # A finetuned model is always stage "finetune", unless the weights that it started from were not trained.
        result = jobs.make_result(
            "classification",
            settings,
            finetuned,
            shards,
            "untrained" if stage == "untrained" else "finetune",
            [table, start],
            {"learning_curve": finetune.learning_curve(job.directory), "pretrained": pretrained.source},
        )
        out = Path(arguments.out) if arguments.out else job.directory / "classification"
        write_result(out, result)
        print(summary(result, out), flush=True)
    return 0


def summary(result, out: Path) -> str:
    """A short table for the terminal."""
    lines = [f"{result.task} ({result.stage}) of {result.source} on split {result.split}"]
    for table in result.tables:
        lines.append(f"  {table.name}: {json.dumps(table.facts, ensure_ascii=False)}")
        lines += [f"    {name:<16}{interval}" for name, interval in table.metrics.items()]
        lines += [
            f"    {name:<16}{group['estimate']:.4f} ({group['num_products']} products)"
            for name, group in table.groups.items()
        ]
    return "\n".join([*lines, f"  -> {out}"])
