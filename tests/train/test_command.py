"""The command line of pretraining: flags, configuration files, exit codes and the line of an error."""

import json
import sys
from pathlib import Path

import pytest

from m5ds import config as configuration
from m5ds.config import ConfigError
from m5ds.train import command, runtime
from m5ds.train.distributed import RankError
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


def test_sections_of_objectives_are_checked_with_the_files_name_and_filled_in(tmp_path) -> None:
    arguments = command.parse(["model.objectives.contrastive.tempreture=1.0"])
    with pytest.raises(
        ConfigError, match=r"quickstart.yaml: unknown key model.objectives.contrastive.tempreture; remove"
    ):
        command.read_configuration(arguments)
    sections = command.read_configuration(command.parse([]))[0].model.objectives
    assert sections["masked"] == {"kind": "masked", "weight": 1.0} and sections["contrastive"]["pairs"] == "all"
    assert sections["contrastive"]["learn_temperature"] is True
