"""tools/finetune.py and tools/evaluate.py from arguments to exit code, with the work itself left out."""

import signal
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from m5ds.config import ConfigError
from m5ds.downstream import command, pretraining_command
from m5ds.downstream.command import EVALUATE, FINETUNE
from m5ds.downstream.embed import pretrained as pretraining
from m5ds.downstream.finetuning import classifier
from m5ds.downstream.finetuning import job as finetune
from m5ds.downstream.measure import results
from m5ds.downstream.measure.bootstrap import Interval
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.report import report
from m5ds.downstream.settings import ClusteringConfig, DownstreamConfig
from m5ds.downstream.tasks import jobs, robustness
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.labels import UNSEEN_NAMES
from m5ds.train import loop as training
from m5ds.train import runtime, stopping
from m5ds.train.report import monitor


@dataclass(frozen=True)
class Model:
    """What the commands look at of a checkpoint."""

    head: str | None
    source: str
    model: torch.nn.Module = field(default_factory=torch.nn.Module, compare=False)

    @property
    def state(self):
        return {"shards": "own"}


PRETRAINED, FINETUNED = Model(None, "runs/a"), Model("head", "runs/f")


def made(task="clustering", stage="pretrain", settings=None, tables=()):
    return Result(
        task=task,
        stage=stage,
        source="runs/a",
        fingerprint="f",
        shards="s",
        manifest_hash="m",
        split="test",
        settings={} if settings is None else settings,
        tables=list(tables),
    )


def test_flags_have_their_documented_defaults_and_stand_anywhere():
    found = vars(command.parse(FINETUNE, ["all", "--checkpoint", "runs/a"]))
    assert found == {
        "task": "all",
        "checkpoint": "runs/a",
        "shards": None,
        "untrained": False,
        "traceback": False,
        "local_rank": 0,
        "config": "configs/downstream/quickstart.yaml",
        "ds_config": "configs/zero3.json",
        "resume": "none",
        "out": None,
        "overrides": [],
    }
    words = ["--local_rank=2", "--untrained", "clustering", "a=1", "--traceback", "--checkpoint", "x", "b=2"]
    words += ["--shards", "s", "--config", "c", "--ds_config", "d", "--resume", "r", "--out", "o"]
    given = command.parse(EVALUATE, words)
    assert (given.local_rank, given.untrained, given.traceback, given.overrides) == (2, True, True, ["a=1", "b=2"])
    assert (given.shards, given.config, given.ds_config, given.resume, given.out) == ("s", "c", "d", "r", "o")
    for bad in (["all"], ["nothing", "--checkpoint", "x"], ["--checkpoint", "x"]):
        with pytest.raises(ConfigError, match="command line"):
            command.parse(EVALUATE, bad)


@pytest.mark.parametrize("task", ["linear_probe", "coarse_retrieval", "instance_retrieval", "clustering", "robustness"])
def test_what_trains_nothing_is_evaluated(task):
    assert command.parse(EVALUATE, [task, "--checkpoint", "x"]).task == task
    with pytest.raises(ConfigError, match=f"{task} trains nothing; run it with tools/evaluate.py {task}"):
        command.parse(FINETUNE, [task, "--checkpoint", "x"])


def test_what_trains_an_encoder_is_finetuned_and_both_tools_do_it_all():
    assert command.parse(FINETUNE, ["classification", "--checkpoint", "x"]).task == "classification"
    with pytest.raises(ConfigError, match="trains an encoder; run it with tools/finetune.py classification"):
        command.parse(EVALUATE, ["classification", "--checkpoint", "x"])
    assert {command.parse(tool, ["all", "--checkpoint", "x"]).task for tool in (FINETUNE, EVALUATE)} == {"all"}


@pytest.mark.parametrize("tool", [FINETUNE, EVALUATE])
def test_the_comparison_of_runs_stands_first_since_its_flags_are_its_own(tool):
    with pytest.raises(ConfigError, match="other flags: python tools/evaluate.py pretraining --checkpoint RUN"):
        command.parse(tool, ["--checkpoint", "x", "pretraining"])


def test_shards_are_those_that_are_named_or_the_runs_own():
    assert command.shards_of(Namespace(shards="named"), PRETRAINED) == "named"
    assert command.shards_of(Namespace(shards=None), PRETRAINED) == "own"
    with pytest.raises(ValueError, match="--shards: hub does not say what it was trained on"):
        command.shards_of(Namespace(shards=None), SimpleNamespace(state=None, source="hub"))


@pytest.fixture
def calls(monkeypatch):
    """What `_run` asks for, in order; loading gives PRETRAINED."""
    found = []
    monkeypatch.setattr(runtime, "start_process_group", lambda: found.append("start"))
    monkeypatch.setattr(runtime, "end_process_group", lambda: found.append("end"))

    def load(path, *, untrained=False):
        found.append(("load", str(path), untrained))
        return PRETRAINED

    monkeypatch.setattr(pretraining, "load_pretrained", load)
    return found


def run(*words):
    tool = FINETUNE if words[0] == "classification" else EVALUATE
    return command._run(command.parse(tool, [*words, "--checkpoint", "runs/a"]))


def test_each_task_goes_its_way_and_its_exit_code_comes_back(calls, monkeypatch):
    def evaluate(task, arguments, evaluation, pretrained, stage):
        assert (evaluation.shards, pretrained) == ("own", PRETRAINED)
        calls.append(("evaluate", task, evaluation.settings.seed, stage))

    def every(arguments, evaluation, ds, pretrained, relaunch):
        assert ds.tree and isinstance(relaunch, command.Relaunch)
        calls.append(("all", evaluation.shards, pretrained))
        return 7

    def classify(arguments, evaluation, ds, pretrained, stage, relaunch):
        assert ds.tree and isinstance(relaunch, command.Relaunch)
        calls.append(("classification", evaluation.shards, pretrained, stage))
        return 9, None

    monkeypatch.setattr(command, "_evaluate", evaluate)
    monkeypatch.setattr(command, "_all", every)
    monkeypatch.setattr(command, "_classification", classify)
    assert run("clustering", "seed=5") == 0
    assert calls == ["start", ("load", "runs/a", False), ("evaluate", "clustering", 5, "pretrain"), "end"]
    calls.clear()
    assert run("robustness", "--untrained") == 0
    assert calls[1:3] == [("load", "runs/a", True), ("evaluate", "robustness", 0, "untrained")]
    calls.clear()
    assert run("all", "--shards", "named", "--resume", "auto") == 7
    assert calls[2:] == [("all", "named", PRETRAINED), "end"]
    calls.clear()
    assert run("classification", "--resume", "auto", "--out", "o") == 9
    assert calls[2:] == [("classification", "own", PRETRAINED, "pretrain"), "end"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["all", "--out", "x"], "task all takes neither --out nor --untrained"),
        (["all", "--untrained"], "task all takes neither --out nor --untrained"),
        (["linear_probe", "--resume", "auto"], "--resume auto: linear_probe trains nothing to go on with"),
        (["clustering", "--config", "no.yaml"], "no.yaml"),
        (["clustering", "--ds_config", "no.json"], "no.json"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_starts(words, message, calls):
    with pytest.raises(ValueError, match=message):
        run(*words)
    assert calls == []


def test_main_returns_the_code_of_the_run(monkeypatch):
    monkeypatch.setattr(command, "parse", lambda tool: f"parsed for {tool}")
    monkeypatch.setattr(command, "_run", lambda arguments: {f"parsed for {FINETUNE}": 5}.get(arguments, 6))
    monkeypatch.setattr(pretraining_command, "run", lambda: 7)
    for words in (["all"], ["--local_rank=1", "pretraining"]):
        monkeypatch.setattr(sys, "argv", ["tool", *words])
        assert command.main(FINETUNE) == 5
        assert command.main(EVALUATE) == (6 if words == ["all"] else 7)


@pytest.fixture
def written(monkeypatch):
    """Results by the folder that they were written to."""
    found = {}
    monkeypatch.setattr(results, "write_result", lambda out, result: found.update({str(out): result}))
    monkeypatch.setattr(jobs, "evaluate_task", lambda task, evaluation, model, stage: made(task, stage))
    monkeypatch.setattr(robustness, "evaluate_robustness", lambda evaluation, model, stage: made("robust", stage))
    return found


def test_a_result_goes_to_its_folder_and_to_the_terminal(written, monkeypatch, capsys):
    evaluation = SimpleNamespace(settings=DownstreamConfig(name="n", output_dir="o"))
    command._evaluate("clustering", Namespace(out=None), evaluation, PRETRAINED, "pretrain")
    command._evaluate("robustness", Namespace(out=None), evaluation, PRETRAINED, "untrained")
    command._evaluate("clustering", Namespace(out="there"), evaluation, PRETRAINED, "s")
    assert {out: (result.task, result.stage) for out, result in written.items()} == {
        str(Path("o/n/clustering-pretrain")): ("clustering", "pretrain"),
        str(Path("o/n/robustness-untrained")): ("robust", "untrained"),
        "there": ("clustering", "s"),
    }
    assert "-> there" in capsys.readouterr().out
    monkeypatch.setattr(jobs, "evaluate_task", lambda *_: None)  # a rank other than 0
    command._evaluate("clustering", Namespace(out="elsewhere"), evaluation, PRETRAINED, "s")
    assert len(written) == 3 and capsys.readouterr().out == ""


def test_all_tasks_run_on_every_stage_and_the_report_names_each_result(calls, monkeypatch, capsys):
    asked = []

    def evaluate(task, arguments, evaluation, model, stage):
        section = getattr(evaluation.settings, task, None)
        asked.append((task, stage, getattr(section, "states", None), evaluation.shards, evaluation.opened is opened))

    monkeypatch.setattr(command, "_evaluate", evaluate)
    monkeypatch.setattr(command, "_classification", lambda *given: (0, Path("o/n/classification-1")))
    monkeypatch.setattr(report, "load_results", lambda paths: [str(path) for path in paths])
    monkeypatch.setattr(report, "build", lambda loaded: loaded)
    wrote = {}
    monkeypatch.setattr(
        report, "write_report", lambda document, out: wrote.update({str(out): document}) or ["page", "text"]
    )
    settings = DownstreamConfig(name="n", output_dir="o", clustering=ClusteringConfig(seeds=[5]))
    opened = {}
    evaluation = Evaluation(settings, "s", opened)
    assert command._all(Namespace(checkpoint="runs/a"), evaluation, None, PRETRAINED, None) == 0
    embedding = ["coarse_retrieval", "instance_retrieval", "clustering"]
    expected = [
        (task, stage, None if task == "robustness" else "fused", "s", True)
        for stage in ("untrained", "pretrain")
        for task in ["linear_probe", *embedding, *(["robustness"] if stage == "pretrain" else [])]
    ]
    assert asked == [*expected, *((task, "finetune", "dense", "s", True) for task in embedding)]
    assert calls == [("load", "runs/a", True), *([("load", "o/n/classification-1", False)] * 3)]
    ((out, document),) = wrote.items()
    assert out == str(Path("o/n/report")) and capsys.readouterr().out == "page\ntext\n"
    stages = ("untrained", "pretrain", "finetune")
    named = {f"o/n/{task}-{stage}" for task in embedding for stage in stages}
    named |= {"o/n/linear_probe-pretrain", "o/n/linear_probe-untrained", "o/n/robustness-pretrain"}
    assert set(document) == named | {"o/n/classification-1"} and len(document) == 13
    monkeypatch.setattr(command, "_classification", lambda *given: (143, Path("x")))
    asked.clear()
    assert command._all(Namespace(checkpoint="runs/a"), evaluation, None, PRETRAINED, None) == 143
    assert asked == expected


class Stub:
    """A context manager with what the classification asks of a monitor and a stop request."""

    enabled = True

    def __init__(self, *arguments, **options):
        self.arguments = (*arguments, *options.items())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def say(self, text):
        print(text)


@pytest.fixture
def classify(calls, monkeypatch, written, tmp_path):
    """Runs the classification with a loop that ends with the given signal."""
    closed = []
    settings = DownstreamConfig(name="n", seed=6)
    job = SimpleNamespace(
        directory=tmp_path, step=3, total_steps=8, sources=SimpleNamespace(close=lambda: closed.append(1))
    )
    monkeypatch.setattr(monitor, "Monitor", Stub)
    monkeypatch.setattr(stopping, "StopRequest", Stub)
    monkeypatch.setattr(finetune, "describe", lambda job, settings, classes: "described")
    monkeypatch.setattr(finetune, "learning_curve", lambda directory: [str(directory)])

    def add_classifier(model, config, count_C, *, seed):
        assert (model, config, seed) == (PRETRAINED.model, settings.classification, settings.seed)
        model.added = SimpleNamespace(head=f"new {count_C}")
        return model.added

    monkeypatch.setattr(classifier, "add_classifier", add_classifier)

    def table(evaluation, model, name="test"):
        return Table(name=f"{name} of {model.head}", metrics={})

    def prepare(evaluation, pretrained, ds, resume):
        assert (pretrained, ds, resume) == (PRETRAINED, "ds", "auto")
        assert pretrained.model.added.head == "new counts" and not pretrained.model.training
        return job

    def run(stop_signal=0, stage="pretrain", out=None, given=PRETRAINED):
        def loop(given_job, monitor, stop):
            assert given_job is job and monitor.arguments == (tmp_path, ("first_step", 3), ("total_steps", 8))
            return stop_signal

        def result(task, stage, model, tables, extras):
            assert task == "classification" and model is PRETRAINED
            return made(task, stage, extras, tables)

        monkeypatch.setattr(training, "train", loop)
        classes = SimpleNamespace(count_C="counts")
        evaluation = SimpleNamespace(settings=settings, classes=classes, result=result)
        arguments = Namespace(
            **{"task": "classification", "resume": "auto", "out": out, "checkpoint": "runs/a", "shards": None},
            **{"untrained": False, "overrides": ["a=1"], "config": "c", "ds_config": "d", "traceback": False},
        )
        relaunch = SimpleNamespace(command=lambda words, ranks: f"{' '.join(words)} on {ranks}")
        return command._classification(arguments, evaluation, "ds", given, stage, relaunch)

    monkeypatch.setattr(jobs, "classification_table", table)
    monkeypatch.setattr(finetune, "prepare", prepare)
    run.closed = closed
    return run


def test_a_finetuned_model_is_tested_and_recorded_beside_its_start(classify, written, tmp_path, calls, capsys):
    assert classify() == (0, tmp_path)
    assert calls == [("load", str(tmp_path), False)] and classify.closed == [1]
    (result,) = written.values()
    assert list(written) == [str(tmp_path)] and result.stage == "finetune"
    assert [table.name for table in result.tables] == ["test of None", "before finetuning of new counts"]
    assert result.settings == {"learning_curve": [str(tmp_path)], "pretrained": "runs/a"}
    assert "described" in capsys.readouterr().out
    assert classify(stage="untrained", out="there") == (0, tmp_path)
    assert written["there"].stage == "untrained"


def test_a_stopped_run_says_how_to_go_on_and_records_nothing(classify, written, tmp_path, calls, capsys):
    assert classify(signal.SIGTERM) == (128 + signal.SIGTERM, tmp_path)
    text = capsys.readouterr().out
    assert "stopped by SIGTERM after 3 of 8 steps\ngo on with: classification --checkpoint runs/a" in text
    assert text.rstrip().endswith("a=1 on 1") and str(tmp_path) in text
    assert written == {} and calls == []


def test_a_finetuned_model_is_not_finetuned_again(classify):
    with pytest.raises(ValueError, match="runs/f: is finetuned already"):
        classify(given=FINETUNED)


def test_a_run_that_goes_on_gets_every_flag_of_its_start(tmp_path):
    given = {"task": "classification", "checkpoint": "c", "config": "y", "ds_config": "j", "traceback": False}
    whole = Namespace(shards="s", out="o", untrained=True, overrides=["a=1", "b=2"], **given)
    words = command._resuming(whole, tmp_path)
    assert words[:8] == ["classification", "--checkpoint", "c", "--shards", "s", "--out", "o", "--untrained"]
    assert words[-2:] == ["a=1", "b=2"] and str(tmp_path) in words
    bare = command._resuming(Namespace(shards=None, out=None, untrained=False, overrides=[], **given), tmp_path)
    assert bare[:3] == ["classification", "--checkpoint", "c"]
    assert not {"--shards", "--out", "--untrained"} & set(bare)


def test_the_summary_shows_every_number_of_every_table(tmp_path):
    groups = {"head": {"estimate": 0.25, "num_products": 4}}
    facts = {UNSEEN_NAMES: ["é"], "tested_categories": 2, "products_of_unseen_categories": 1, "products": 4}
    tables = [
        Table(name="a", metrics={"accuracy": Interval(estimate=0.5, low=0.25, high=0.75)}, facts=facts, groups=groups),
        Table(name="b", metrics={}, facts={"label": "ü"}),
    ]
    lines = command.summary(made("clustering", settings={"category_level": 2}, tables=tables), Path("out")).splitlines()
    assert lines == [
        "clustering (pretrain) of runs/a on split test, category_level 2",
        '  a: {"tested_categories": 2, "products_of_unseen_categories": 1, "products": 4}',
        "    1 of 2 tested categories are unseen in training, with 1 of 4 products, all counted as errors: é. A coarser"
        " category_level leaves fewer",
        "    accuracy        0.5000 [0.2500, 0.7500]",
        "    head            0.2500 (4 products)",
        '  b: {"label": "ü"}',
        "  -> out",
    ]
    assert command.summary(made(), Path("o")).startswith(
        "clustering (pretrain) of runs/a on split test, category_level leaf"
    )
