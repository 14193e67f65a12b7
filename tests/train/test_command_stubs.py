"""The command line of pretraining with stubs for what trains: flags, exit codes, what is built and what is printed."""

import argparse
import json
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import m5ds.train.loop as loop
import m5ds.train.report.monitor as monitor_module
from m5ds import config as configuration
from m5ds.config import ConfigError
from m5ds.train import command, engine, runtime, sources, start
from m5ds.train.checkpoints import checkpoint, run_directory
from m5ds.train.distributed import RankError
from m5ds.train.report import summary
from m5ds.train.step import Diverged

ROOT = Path(__file__).resolve().parents[2]


def test_flags_and_overrides_may_stand_in_any_order() -> None:
    parsed = command.parse(["a=1", "--resume", "auto", "b=2", "--local_rank", "3", "--traceback", "c=3"])
    assert vars(parsed) == {
        "config": "configs/run/quickstart.yaml",
        "ds_config": "configs/zero3.json",
        "resume": "auto",
        "traceback": True,
        "local_rank": 3,
        "overrides": ["a=1", "b=2", "c=3"],
    }
    parsed = command.parse(["--config", "c.yaml", "--ds_config", "d.json"])
    assert (parsed.config, parsed.ds_config, parsed.resume) == ("c.yaml", "d.json", "none")
    assert (parsed.traceback, parsed.local_rank, parsed.overrides) == (False, 0, [])


@pytest.mark.parametrize("flags", [["--nonsense"], ["--local_rank", "x"], ["--config"]])
def test_a_bad_flag_is_a_users_error_of_one_line(flags) -> None:
    with pytest.raises(ConfigError, match=r"^command line: .*; --help lists the flags$"):
        command.parse(flags)


def raising(error: BaseException):
    def run() -> int:
        raise error

    return run


@pytest.fixture
def rank_0(monkeypatch) -> list[float]:
    """Seconds that were waited."""
    waits: list[float] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["m5ds/pretrain.py"])
    monkeypatch.setattr(command.time, "sleep", waits.append)
    return waits


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a.yaml:\n bad"), 2, "error: a.yaml: bad\n"),
        (RankError("rank 1: bad"), 2, "error: rank 1: bad\n"),
        (FileNotFoundError("no file"), 2, "error: no file\n"),
        (Diverged("a loss\nis not finite"), 3, "diverged: a loss is not finite\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_run_ends_with_is_an_exit_code_and_one_line(rank_0, capsys, error, code, line) -> None:
    assert command.guarded(raising(error)) == code
    assert capsys.readouterr() == ("", line)
    assert rank_0 == []


def test_the_code_of_a_run_that_ends_is_returned_and_a_defect_keeps_its_traceback(rank_0) -> None:
    assert command.guarded(lambda: 143) == 143
    for error in (RuntimeError("ours"), AssertionError("ours")):
        with pytest.raises(type(error)):
            command.guarded(raising(error))


def test_a_traceback_is_shown_on_request(rank_0, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["m5ds/pretrain.py", "--traceback"])
    with pytest.raises(ConfigError):
        command.guarded(raising(ConfigError("bad")))


def test_other_ranks_leave_it_to_rank_0_to_speak(rank_0, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "0")
    command.guarded(raising(ValueError("bad")))
    assert rank_0 == []
    monkeypatch.setenv("RANK", "3")
    assert command.guarded(raising(ValueError("bad"))) == 2
    assert rank_0 == [20.0] and capsys.readouterr().err == "error: bad\n" * 2


def test_files_are_looked_for_here_and_then_in_the_repository(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.find_file("configs/zero3.json") == ROOT / "configs/zero3.json"
    assert command.find_file("configs/no.json") == Path("configs/no.json")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/zero3.json").touch()
    assert command.find_file("configs/zero3.json") == Path("configs/zero3.json")
    absolute = tmp_path / "none.json"
    assert command.find_file(str(absolute)) == absolute
    monkeypatch.setattr(runtime, "REPOSITORY", tmp_path / "configs")
    (tmp_path / "configs/configs").mkdir()
    assert command.find_file("run") == Path("run"), "a folder is no file"


def test_the_configuration_takes_what_only_the_json_says(tmp_path) -> None:
    tree = json.loads((ROOT / "configs/zero3.json").read_text())
    tree["optimizer"]["params"]["lr"] = 0.125
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"ds\.json: optimizer\.params\.lr is 0\.125 and .*quickstart\.yaml"):
        command.read_configuration(command.parse(["--ds_config", str(path)]))
    tree["optimizer"]["params"] |= {"lr": "auto", "eps": 0.5}
    path.write_text(json.dumps(tree))
    assert command.read_configuration(command.parse(["--ds_config", str(path)]))[0].train.epsilon == 0.5
    quickstart = configuration.given_keys(ROOT / "configs/run/quickstart.yaml")
    config, ds, given = command.read_configuration(command.parse(["seed=7"]))
    assert config.seed == 7 and given == quickstart | {"seed"}
    assert ds.path == str(command.find_file("configs/zero3.json"))


class Run:
    """A command whose parts are stubs; `events` tells the order in which they were used."""

    def __init__(self, monkeypatch, tmp_path, stop_signal: int = 0) -> None:
        self.events: list = []
        run = self
        self.enabled = True

        class Monitor:
            enabled = True

            def __init__(self, directory, **steps) -> None:
                run.events.append(("monitor", directory, steps))
                self.enabled = run.enabled

            def __enter__(self):
                return self

            def __exit__(self, *exception) -> None:
                run.events.append("monitor closed")

            def say(self, text: str) -> None:
                run.events.append(("say", text))

        def train(job, monitor, stop) -> int:
            assert job is run.job and isinstance(monitor, Monitor)
            run.events.append(("train", stop))
            return stop_signal

        close = SimpleNamespace(close=lambda: self.events.append("sources closed"))
        self.job = SimpleNamespace(directory=tmp_path / "q", step=3, total_steps=9, sources=close)
        self.config = SimpleNamespace(train=configuration.TrainConfig(total_steps=9))
        self.ds = SimpleNamespace(path="ds.json")

        class Relaunch:
            def command(self, words: list[str], ranks: int) -> str:
                return f"[{ranks} ranks: {' '.join(words)}]"

        def prepare(arguments, *rest):
            assert rest == (run.config, run.ds, frozenset({"given"}))
            run.events.append(("prepare", arguments))
            return run.job, "resolved"

        monkeypatch.setattr(command, "Relaunch", Relaunch)
        monkeypatch.setattr(command, "read_configuration", lambda _: (self.config, self.ds, frozenset({"given"})))
        monkeypatch.setattr(command, "prepare", prepare)
        monkeypatch.setattr(runtime, "start_process_group", lambda: self.events.append("group"))
        monkeypatch.setattr(runtime, "end_process_group", lambda: self.events.append("end of group"))
        monkeypatch.setattr(loop, "train", train)
        monkeypatch.setattr(monitor_module, "Monitor", Monitor)
        monkeypatch.setattr(summary, "opening", lambda *given: ("opening", given))
        monkeypatch.setattr(summary, "stopped", lambda *given: ("stopped", given))
        monkeypatch.setattr(summary, "closing", lambda *given: ("closing", given))
        monkeypatch.setattr(command.time, "perf_counter", iter([10.0, 15.5]).__next__)
        self.printed: list = []
        monkeypatch.setattr("builtins.print", lambda text, **_: self.printed.append(text))

    def main(self, monkeypatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["m5ds/pretrain.py", *arguments])
        return command.main()


FLAGS = "--ds_config configs/zero3.json --config configs/run/quickstart.yaml --resume"


def test_a_run_opens_trains_closes_and_tells_how_to_train_twice_as_long(monkeypatch, tmp_path) -> None:
    run = Run(monkeypatch, tmp_path)
    monkeypatch.setattr("m5ds.train.distributed.world_size", lambda: 2)
    assert run.main(monkeypatch, "seed=1", "train.total_steps=9") == 0
    kinds = [event if isinstance(event, str) else event[0] for event in run.events]
    assert kinds == [
        *("group", "prepare", "monitor", "say", "train", "monitor closed", "sources closed", "end of group"),
    ]
    assert run.events[2] == ("monitor", tmp_path / "q", {"first_step": 3, "total_steps": 9})
    assert run.events[3] == ("say", ("opening", (run.job, "resolved")))
    ((kind, (job, monitor, seconds, longer)),) = run.printed
    assert (kind, job, monitor.enabled, seconds) == ("closing", run.job, True, 5.5)
    assert longer == f"[2 ranks: {FLAGS} {tmp_path / 'q'} seed=1 train.total_steps=18]"


def test_a_stopped_run_ends_with_the_signals_code_and_tells_how_to_go_on(monkeypatch, tmp_path) -> None:
    run = Run(monkeypatch, tmp_path, stop_signal=signal.SIGUSR1)
    assert run.main(monkeypatch, "seed=1") == 128 + signal.SIGUSR1
    again = f"[1 ranks: {FLAGS} {tmp_path / 'q'} seed=1]"
    assert run.printed == [("stopped", (run.job, "SIGUSR1", again))]
    assert run.events[-2:] == ["sources closed", "end of group"]


def test_other_ranks_print_nothing(monkeypatch, tmp_path) -> None:
    run = Run(monkeypatch, tmp_path)
    run.enabled = False
    assert run.main(monkeypatch) == 0 and run.printed == []


def test_signals_are_noted_from_before_the_data_are_opened_to_the_end(monkeypatch, tmp_path) -> None:
    run = Run(monkeypatch, tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    prepare = command.prepare

    def watched(*given):
        assert signal.getsignal(signal.SIGTERM) != before
        return prepare(*given)

    monkeypatch.setattr(command, "prepare", watched)
    assert run.main(monkeypatch) == 0
    assert signal.getsignal(signal.SIGTERM) == before


class Tokenizer:
    def __init__(self) -> None:
        self.saved: list[Path] = []

    def save(self, folder: Path) -> None:
        self.saved.append(folder)


class Prepared:
    """`prepare` with stubs: what each part was given."""

    def __init__(self, monkeypatch, tmp_path, found: checkpoint.Found | None) -> None:
        self.given: dict = {}
        self.tokenizer, self.directory = Tokenizer(), tmp_path / "q"
        planned = SimpleNamespace(resolved={"r": 1}, facts={"f": 2}, precision="fp32", total_steps=77)
        self.returns = {
            "find_run": (self.directory, found),
            "shard_directory": "shards",
            "run_tokenizer": self.tokenizer,
            "open_sources": "opened",
            "plan": planned,
            "write_description": None,
            "build_model": "model",
            "start_engine": "engine",
        }
        homes = {start: ["find_run", "plan", "start_engine"], run_directory: ["write_description"]}
        homes |= {sources: ["shard_directory", "run_tokenizer", "open_sources"], engine: ["build_model"]}
        for module, names in homes.items():
            for name in names:
                monkeypatch.setattr(module, name, self.stub(name))
        self.planned = planned
        self.config = configuration.load(ROOT / "configs/run/quickstart.yaml", ["data.max_bad_fraction=0.25"])

    def stub(self, name: str):
        def called(*given, **options):
            self.given[name] = (given, options) if options else given
            return self.returns[name]

        return called

    def job(self, *given: str):
        arguments = argparse.Namespace(resume="auto")
        return command.prepare(arguments, self.config, "ds", frozenset(given))


def test_a_new_job_is_built_from_its_parts(monkeypatch, tmp_path) -> None:
    prepared = Prepared(monkeypatch, tmp_path, None)
    job, resolved = prepared.job("seed")
    config, given = prepared.config, prepared.given
    assert given == {
        "find_run": (config, "auto"),
        "shard_directory": (config,),
        "run_tokenizer": (config, "shards", None, None),
        "open_sources": (config, "shards", prepared.tokenizer),
        "plan": (config, "ds", "opened", None),
        "write_description": (prepared.directory, config, {"r": 1}, {"f": 2}),
        "build_model": ((config, prepared.tokenizer, {"r": 1}), {"resumes": False}),
        "start_engine": ("model", config, prepared.planned, None),
    }
    assert prepared.tokenizer.saved == [prepared.directory / "tokenizer"]
    assert resolved == {"r": 1}
    assert (job.config, job.directory, job.sources, job.model) == (config, prepared.directory, "opened", "model")
    assert (job.engine, job.precision, job.total_steps, job.step) == ("engine", "fp32", 77, 0)
    assert (job.facts, job.last_tag) == ({"f": 2}, None)
    assert job.totals == {"products": 0.0, "seconds": 0.0}
    assert job.checkpoints == prepared.directory / "checkpoints"
    budget = job.budget
    assert (budget.path, budget.max_fraction) == (prepared.directory / "bad_media.jsonl", 0.25)
    assert (budget.num_decoded, budget.num_bad) == (0, 0)


def test_a_resumed_job_takes_step_counts_and_tokenizer_from_its_checkpoint(monkeypatch, tmp_path) -> None:
    state = {"step": 5, "num_decoded": 40, "num_bad": 2}
    found = checkpoint.Found(root=tmp_path / "checkpoints", tag="step-00000005", state=state)
    prepared = Prepared(monkeypatch, tmp_path, found)
    job, _ = prepared.job()
    assert prepared.given["run_tokenizer"][2] == tmp_path / "checkpoints/step-00000005/tokenizer"
    assert prepared.given["plan"][3] is found and prepared.given["start_engine"][3] is found
    assert prepared.given["build_model"][1] == {"resumes": True}
    assert (job.step, job.last_tag) == (5, "step-00000005")
    assert (job.budget.num_decoded, job.budget.num_bad) == (40, 2)


def test_a_size_of_the_vocabulary_is_wanted_where_it_is_given(monkeypatch, tmp_path) -> None:
    prepared = Prepared(monkeypatch, tmp_path, None)
    prepared.job("data.tokenizer.vocab_size")
    assert prepared.given["run_tokenizer"][3] == prepared.config.data.tokenizer.vocab_size


def test_rank_0_alone_describes_the_run(monkeypatch, tmp_path) -> None:
    prepared = Prepared(monkeypatch, tmp_path, None)
    monkeypatch.setattr("m5ds.train.distributed.rank", lambda: 1)
    monkeypatch.setattr("m5ds.train.distributed.stop_together", nullcontext)
    prepared.job()
    assert "write_description" not in prepared.given and prepared.tokenizer.saved == []
