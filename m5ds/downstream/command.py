"""The command lines of tools/finetune.py and tools/evaluate.py, from arguments to exit code."""

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from m5ds.config import given_keys
from m5ds.downstream import pretraining_command
from m5ds.train import runtime
from m5ds.train.checkpoints.relaunch import Relaunch, resuming
from m5ds.train.command import Parser, find_file, guarded

EMBEDDING_TASKS = ("coarse_retrieval", "instance_retrieval", "clustering")
ALL = "all"
"""Every task of the untrained, the pretrained and the finetuned model, with a report: it trains and evaluates."""
TRAINED = ("classification",)
EVALUATED = ("linear_probe", *EMBEDDING_TASKS, "robustness")
FINETUNE, EVALUATE = "tools/finetune.py", "tools/evaluate.py"
TASKS = {FINETUNE: (*TRAINED, ALL), EVALUATE: (*EVALUATED, pretraining_command.TASK, ALL)}
"""What each tool does. Its name says whether a task alone trains an encoder or only reads one."""
CONFIG = "configs/downstream/quickstart.yaml"


def parse(tool: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """`tool` is FINETUNE or EVALUATE. ConfigError for an unknown flag or a task of the other tool."""
    parser = Parser(prog=f"deepspeed {tool}", description="The downstream tasks from a pretrained checkpoint.")
    parser.add_argument("task", choices=TASKS[tool], type=_task_of(tool))
    add_checkpoint_arguments(parser)
    parser.add_argument("--config", default=CONFIG, help=f"the downstream YAML (default: {CONFIG})")
    parser.add_argument(
        "--ds_config",
        default="configs/zero3.json",
        help="DeepSpeed's JSON, for what trains (default: ZeRO-3)",
    )
    parser.add_argument("--resume", default="none", metavar="auto|none|PATH", help="for what trains, as in pretraining")
    parser.add_argument("--out", help="folder of the result (default: OUTPUT_DIR/NAME/TASK-STAGE)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the YAML")
    return parser.parse_intermixed_args(arguments)


def _task_of(tool: str) -> Callable[[str], str]:
    """Refuses a task that another tool does with a line that names that tool."""

    def task(word: str) -> str:
        if word == pretraining_command.TASK:
            raise argparse.ArgumentTypeError(f"{word} takes other flags: python {EVALUATE} {word} --checkpoint RUN")
        for other, tasks in TASKS.items():
            if word in tasks and word not in TASKS[tool]:
                does = "trains nothing" if other == EVALUATE else "trains an encoder"
                raise argparse.ArgumentTypeError(f"{word} {does}; run it with {other} {word}")
        return word

    return task


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


def main(tool: str) -> int:
    """Run and return the exit code; errors in the input are one line on rank 0's stderr."""
    if tool == EVALUATE and pretraining_command.is_asked(sys.argv[1:]):
        return guarded(pretraining_command.run)
    return guarded(lambda: _run(parse(tool)))


def shards_of(arguments: argparse.Namespace, pretrained) -> str:
    """--shards, or the run's own. `ValueError` where neither is known."""
    if arguments.shards is not None:
        return arguments.shards
    if pretrained.state is None:
        raise ValueError(f"--shards: {pretrained.source} does not say what it was trained on; name a shard directory")
    return pretrained.state["shards"]


def _run(arguments: argparse.Namespace) -> int:
    from m5ds.downstream import settings as downstream_settings
    from m5ds.train.engine import ds_config

    path = find_file(arguments.config)
    settings = downstream_settings.load(path, arguments.overrides)
    ds = ds_config.read(find_file(arguments.ds_config))
    settings = ds_config.merge(ds, settings, str(path), given_keys(path, arguments.overrides))
    if arguments.task == ALL and (arguments.out or arguments.untrained):
        raise ValueError("task all takes neither --out nor --untrained: it writes every stage under OUTPUT_DIR/NAME")
    if arguments.task in EVALUATED and arguments.resume != "none":
        raise ValueError(f"--resume {arguments.resume}: {arguments.task} trains nothing to go on with; leave it out")
    relaunch = Relaunch()
    runtime.start_process_group()

    from m5ds.downstream.embed.pretrained import load_pretrained
    from m5ds.downstream.tasks.evaluation import Evaluation
    from m5ds.downstream.tasks.jobs import stage_of

    pretrained = load_pretrained(arguments.checkpoint, untrained=arguments.untrained)
    evaluation = Evaluation(settings, shards_of(arguments, pretrained))
    stage = stage_of(pretrained, arguments.untrained)
    code = 0
    if arguments.task == ALL:
        code = _all(arguments, evaluation, ds, pretrained, relaunch)
    elif arguments.task in TRAINED:
        code, _ = _classification(arguments, evaluation, ds, pretrained, stage, relaunch)
    else:
        _evaluate(arguments.task, arguments, evaluation, pretrained, stage)
    runtime.end_process_group()
    return code


def _resuming(arguments: argparse.Namespace, directory: Path) -> list[str]:
    """This program's arguments for going on with the classification in `directory`."""
    named = {"--checkpoint": arguments.checkpoint, "--shards": arguments.shards, "--out": arguments.out}
    flags = [word for flag, value in named.items() if value is not None for word in (flag, value)]
    flags += ["--untrained"] if arguments.untrained else []
    return [arguments.task, *flags, *resuming(arguments, directory), *arguments.overrides]


def _evaluate(task: str, arguments, evaluation, pretrained, stage: str) -> None:
    from m5ds.downstream.measure.results import write_result
    from m5ds.downstream.tasks.jobs import evaluate_task, folder_of
    from m5ds.downstream.tasks.robustness import evaluate_robustness

    if task == "robustness":
        result = evaluate_robustness(evaluation, pretrained, stage)
    else:
        result = evaluate_task(task, evaluation, pretrained, stage)
    if result is not None:
        out = Path(arguments.out) if arguments.out else folder_of(evaluation.settings) / f"{task}-{stage}"
        write_result(out, result)
        print(summary(result, out), flush=True)


def _all(arguments, evaluation, ds, pretrained, relaunch: Relaunch) -> int:
    """Every task of the untrained, pretrained and finetuned model (no probe of the last), robustness and the report."""
    from m5ds.downstream.embed.pretrained import load_pretrained
    from m5ds.downstream.report.report import build, load_results, write_report
    from m5ds.downstream.tasks.evaluation import Evaluation
    from m5ds.downstream.tasks.jobs import folder_of
    from m5ds.train import distributed

    for stage in ("untrained", "pretrain"):
        model = load_pretrained(arguments.checkpoint, untrained=True) if stage == "untrained" else pretrained
        for task in ("linear_probe", *EMBEDDING_TASKS):
            _evaluate(task, arguments, evaluation, model, stage)
    _evaluate("robustness", arguments, evaluation, pretrained, "pretrain")
    code, directory = _classification(arguments, evaluation, ds, pretrained, "pretrain", relaunch)
    if code:
        return code
    settings = evaluation.settings
    dense = {
        name: dataclasses.replace(getattr(settings, name), states="dense")
        for name in ("coarse_retrieval", "instance_retrieval", "clustering")
    }
    finetuned = Evaluation(dataclasses.replace(settings, **dense), evaluation.shards, evaluation.opened)
    for task in EMBEDDING_TASKS:
        _evaluate(task, arguments, finetuned, load_pretrained(directory), "finetune")
    if distributed.rank() == 0:
        folder = folder_of(settings)
        stages = [f"{task}-{stage}" for task in EMBEDDING_TASKS for stage in ("untrained", "pretrain", "finetune")]
        stages += [f"{task}-pretrain" for task in ("linear_probe", "robustness")] + ["linear_probe-untrained"]
        results = [folder / name for name in stages]
        for path in write_report(build(load_results([*results, directory])), folder / "report"):
            print(path, flush=True)
    return 0


def _classification(arguments, evaluation, ds, pretrained, stage: str, relaunch: Relaunch) -> tuple[int, Path]:
    """Finetune and test; the exit code and the run's folder, which also gets the result."""
    from m5ds.downstream.embed.pretrained import load_pretrained
    from m5ds.downstream.finetuning import job as finetune
    from m5ds.downstream.finetuning.classifier import add_classifier
    from m5ds.downstream.measure.results import write_result
    from m5ds.downstream.tasks.jobs import classification_table
    from m5ds.train import distributed
    from m5ds.train.loop import train
    from m5ds.train.report.monitor import Monitor
    from m5ds.train.stopping import StopRequest

    if pretrained.head is not None:
        raise ValueError(f"{pretrained.source}: is finetuned already; pass its pretraining run as --checkpoint")
    settings, classes = evaluation.settings, evaluation.classes
    added = add_classifier(pretrained.model, settings.classification, classes.count_C, seed=settings.seed)
    pretrained.model.eval()
    start = classification_table(evaluation, dataclasses.replace(pretrained, head=added.head), name="before finetuning")
    with StopRequest() as stop:
        job = finetune.prepare(evaluation, pretrained, ds, arguments.resume)
        with Monitor(job.directory, first_step=job.step, total_steps=job.total_steps) as monitor:
            monitor.say(finetune.describe(job, settings, classes))
            stop_signal = train(job, monitor, stop)
        job.sources.close()
    if stop_signal:
        if monitor.enabled:
            done = f"stopped by {signal.Signals(stop_signal).name} after {job.step} of {job.total_steps} steps"
            again = relaunch.command(_resuming(arguments, job.directory), distributed.world_size())
            print(f"{done}\ngo on with: {again}", flush=True)
        return 128 + stop_signal, job.directory
    finetuned = load_pretrained(job.directory)
    table = classification_table(evaluation, finetuned)
    if table is not None:
        # A finetuned model is of stage "finetune", unless the weights that it started from were not trained.
        result = evaluation.result(
            "classification",
            "untrained" if stage == "untrained" else "finetune",
            finetuned,
            [table, start],
            {"learning_curve": finetune.learning_curve(job.directory), "pretrained": pretrained.source},
        )
        out = Path(arguments.out) if arguments.out else job.directory
        write_result(out, result)
        print(summary(result, out), flush=True)
    return 0, job.directory


def summary(result, out: Path) -> str:
    """A short table for the terminal."""
    from m5ds.downstream.measure.categories import LEAF
    from m5ds.downstream.tasks.labels import UNSEEN_NAMES, unseen_line

    level = result.settings.get("category_level", LEAF)
    lines = [f"{result.task} ({result.stage}) of {result.source} on split {result.split}, category_level {level}"]
    for table in result.tables:
        facts = {name: value for name, value in table.facts.items() if name != UNSEEN_NAMES}
        lines.append(f"  {table.name}: {json.dumps(facts, ensure_ascii=False)}")
        lines += [f"    {line}" for line in [unseen_line(table.facts)] if line]
        lines += [f"    {name:<16}{interval}" for name, interval in table.metrics.items()]
        lines += [
            f"    {name:<16}{group['estimate']:.4f} ({group['num_products']} products)"
            for name, group in table.groups.items()
        ]
    return "\n".join([*lines, f"  -> {out}"])
