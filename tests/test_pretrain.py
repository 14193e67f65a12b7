"""m5ds/pretrain.py with stubs for its parts: what each is given, in which order, and what is printed."""

import argparse
import runpy
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import m5ds
import m5ds.pretrain as story
from m5ds import config as configuration
from m5ds.train import command, loop, runtime, sources, start
from m5ds.train.checkpoints import checkpoint, run_directory
from m5ds.train.engine import build as engine
from m5ds.train.report import monitor as monitor_module
from m5ds.train.report import summary
from m5ds.train.validation import HeldOut

ROOT = Path(__file__).resolve().parents[1]


class Tokenizer:
    def __init__(self) -> None:
        self.saved: list[Path] = []

    def save(self, folder: Path) -> None:
        self.saved.append(folder)


class Run:
    """The story's parts as stubs: `given` holds what each got, `events` the order in which they were used."""

    def __init__(self, monkeypatch, tmp_path, *, saved=None, stop_signal: int = 0, given=(), enabled=True) -> None:
        self.events: list = []
        self.given: dict = {}
        self.printed: list = []
        self.tokenizer, self.directory, self.enabled = Tokenizer(), tmp_path / "q", enabled
        self.job = self.stop = None
        self.config = configuration.load(ROOT / "configs/run/quickstart.yaml", ["data.max_bad_fraction=0.25"])
        self.data = SimpleNamespace(close=lambda: self.events.append("data closed"))
        self.plan = SimpleNamespace(resolved={"r": 1}, identity={"f": 2}, precision="fp32", total_steps=77)
        returns = {
            (story, "read_configuration"): (self.config, "ds", frozenset(given)),
            (runtime, "start_process_group"): None,
            (runtime, "end_process_group"): None,
            (start, "find_run"): (self.directory, saved),
            (sources, "shard_directory"): "shards",
            (sources, "run_tokenizer"): self.tokenizer,
            (sources, "open_sources"): self.data,
            (start, "plan"): self.plan,
            (run_directory, "write_description"): None,
            (engine, "build_model"): "model",
            (start, "start_engine"): "engine",
            (summary, "opening"): "opening",
            (summary, "stopped"): "stopped",
            (summary, "closing"): "closing",
        }
        for (module, name), value in returns.items():
            monkeypatch.setattr(module, name, self.stub(name, value))
        run = self

        class Monitor:
            def __init__(self, directory, **steps) -> None:
                run.events.append(("monitor", directory, steps))
                self.enabled = run.enabled

            def __enter__(self):
                return self

            def __exit__(self, *exception) -> None:
                run.events.append("monitor closed")

            def say(self, text: str) -> None:
                run.events.append(("say", text))

        class Relaunch:
            def command(self, words: list[str], ranks: int) -> str:
                return f"[{ranks} ranks: {' '.join(words)}]"

        def train(job, monitor, stop) -> int:
            assert isinstance(monitor, Monitor)
            run.job, run.stop = job, stop
            run.events.append("train")
            return stop_signal

        monkeypatch.setattr(story, "Relaunch", Relaunch)
        monkeypatch.setattr(loop, "train", train)
        monkeypatch.setattr(monitor_module, "Monitor", Monitor)
        monkeypatch.setattr(story.time, "perf_counter", iter([10.0, 15.5]).__next__)
        monkeypatch.setattr("builtins.print", lambda text, **_: self.printed.append(text))

    def stub(self, name: str, value):
        def called(*given, **options):
            self.events.append(name)
            self.given[name] = (given, options) if options else given
            return value

        return called

    def __call__(self, *overrides: str) -> int:
        arguments = argparse.Namespace(
            config="configs/run/quickstart.yaml",
            ds_config="configs/zero3.json",
            resume="auto",
            traceback=False,
            overrides=list(overrides),
        )
        return story.pretrain(arguments)


@pytest.fixture
def run(monkeypatch, tmp_path):
    return lambda **options: Run(monkeypatch, tmp_path, **options)


FLAGS = "--ds_config configs/zero3.json --config configs/run/quickstart.yaml --resume"


def test_every_part_comes_to_life_in_order(run) -> None:
    told = run()
    assert told() == 0
    kinds = [event if isinstance(event, str) else event[0] for event in told.events]
    assert kinds == [
        "read_configuration",
        "start_process_group",
        "find_run",
        "shard_directory",
        "run_tokenizer",
        "open_sources",
        "plan",
        "write_description",
        "build_model",
        "start_engine",
        "monitor",
        "opening",
        "say",
        "train",
        "monitor closed",
        "data closed",
        "closing",
        "end_process_group",
    ]


def test_a_new_job_is_built_from_its_parts(run) -> None:
    told = run()
    told()
    config, given, job = told.config, told.given, told.job
    assert given["find_run"] == (config, "auto") and given["shard_directory"] == (config,)
    assert given["run_tokenizer"] == (config, "shards", None, None)
    assert given["open_sources"] == (config, "shards", told.tokenizer)
    assert given["plan"] == (config, "ds", told.data, None)
    assert given["write_description"] == (told.directory, config, {"r": 1}, {"f": 2})
    assert given["build_model"] == ((config, told.tokenizer, {"r": 1}), {"resumes": False})
    assert given["start_engine"] == ("model", config, told.plan, None)
    assert told.tokenizer.saved == [told.directory / "tokenizer"]
    assert (job.config, job.directory, job.sources, job.model) == (config, told.directory, told.data, "model")
    assert (job.engine, job.precision, job.total_steps) == ("engine", "fp32", 77)
    assert (job.step, job.validated, job.last_tag, job.objectives) == (0, -1, None, None)
    assert isinstance(job.validation, HeldOut) and job.identity == {"f": 2} and job.prepare(job) is job
    assert job.totals == {"products": 0.0, "seconds": 0.0}
    assert job.checkpoints == told.directory / "checkpoints"
    budget = job.budget
    assert (budget.path, budget.max_fraction) == (told.directory / "bad_media.jsonl", 0.25)
    assert (budget.num_decoded, budget.num_bad) == (0, 0)
    assert told.events[10] == ("monitor", told.directory, {"first_step": 0, "total_steps": 77})
    assert given["opening"] == (job, {"r": 1})


@pytest.mark.parametrize(("more", "validated"), [({}, 5), ({"validated": 4}, 4)], ids=["older state", "state"])
def test_a_resumed_job_takes_step_counts_and_tokenizer_from_its_checkpoint(run, tmp_path, more, validated) -> None:
    state = {"step": 5, "num_decoded": 40, "num_bad": 2, **more}
    saved = checkpoint.SavedCheckpoint(root=tmp_path / "checkpoints", tag="step-00000005", state=state)
    told = run(saved=saved)
    told()
    assert told.given["run_tokenizer"][2] == tmp_path / "checkpoints/step-00000005/tokenizer"
    assert told.given["plan"][3] is saved and told.given["start_engine"][3] is saved
    assert told.given["build_model"][1] == {"resumes": True}
    job = told.job
    assert (job.step, job.last_tag, job.validated) == (5, "step-00000005", validated)
    assert (job.budget.num_decoded, job.budget.num_bad) == (40, 2)


def test_a_size_of_the_vocabulary_is_wanted_where_it_is_given(run) -> None:
    told = run(given=["data.tokenizer.vocab_size"])
    told()
    assert told.given["run_tokenizer"][3] == told.config.data.tokenizer.vocab_size


def test_rank_0_alone_describes_the_run(run, monkeypatch) -> None:
    monkeypatch.setattr("m5ds.train.distributed.rank", lambda: 1)
    monkeypatch.setattr("m5ds.train.distributed.stop_together", nullcontext)
    told = run()
    told()
    assert "write_description" not in told.given and told.tokenizer.saved == []


def test_a_run_that_ends_tells_how_to_train_twice_as_long(run, monkeypatch) -> None:
    told = run()
    monkeypatch.setattr("m5ds.train.distributed.world_size", lambda: 2)
    monkeypatch.setattr("m5ds.train.distributed.stop_together", nullcontext)
    assert told("seed=1", "train.total_steps=77") == 0
    assert told.printed == ["closing"]
    job, monitor, seconds, longer = told.given["closing"]
    assert job is told.job and monitor.enabled and seconds == 5.5
    assert longer == f"[2 ranks: {FLAGS} {told.directory} seed=1 train.total_steps=154]"


def test_a_stopped_run_ends_with_the_signals_code_and_tells_how_to_go_on(run) -> None:
    told = run(stop_signal=signal.SIGUSR1)
    assert told("seed=1") == 128 + signal.SIGUSR1
    assert told.printed == ["stopped"]
    assert told.given["stopped"] == (told.job, "SIGUSR1", f"[1 ranks: {FLAGS} {told.directory} seed=1]")
    assert told.events[-1] == "end_process_group" and "data closed" in told.events


def test_other_ranks_print_nothing(run) -> None:
    told = run(enabled=False)
    assert told() == 0 and told.printed == []


def test_signals_are_noted_from_before_the_data_are_opened_to_the_end(run, monkeypatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    told = run()
    found = start.find_run

    def watched(*given):
        assert signal.getsignal(signal.SIGTERM) != before
        return found(*given)

    monkeypatch.setattr(start, "find_run", watched)
    assert told() == 0
    assert signal.getsignal(signal.SIGTERM) == before


SCRIPT = Path(m5ds.__file__).parent / "pretrain.py"


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """In which order environment and command were used."""
    seen: list[str] = []
    monkeypatch.setattr(runtime, "prepare_environment", lambda: seen.append("environment"))
    monkeypatch.setattr(command, "guarded", lambda run: seen.append("guarded") or 143)
    return seen


@pytest.mark.parametrize("first", [str(SCRIPT.parent), "/elsewhere"])
def test_it_exits_with_the_commands_code_and_its_folder_shadows_no_module(events, monkeypatch, first) -> None:
    monkeypatch.setattr(sys, "path", [first, *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 143 and events == ["environment", "guarded"]
    assert (first in sys.path) == (first == "/elsewhere")


def test_importing_it_runs_nothing(events) -> None:
    runpy.run_path(str(SCRIPT), run_name="pretrain")
    assert events == []
