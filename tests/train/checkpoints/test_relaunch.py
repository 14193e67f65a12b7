"""The printed command: the launcher that started the run with its own flags, and every override but a given length."""

import argparse
import shlex
import sys
from pathlib import Path

import psutil
import pytest

from m5ds.config import TrainConfig
from m5ds.train.checkpoints import relaunch
from m5ds.train.checkpoints.relaunch import Relaunch, doubled, resuming

SCRIPT = "m5ds/pretrain.py"


class Process:
    def __init__(self, words: list[str]) -> None:
        self.words = words

    def cmdline(self) -> list[str]:
        return self.words


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What a process prints whose ancestors, nearest first, have these command lines, in a folder with a blank."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "executable", str(folder / ".venv/bin/python"))
    monkeypatch.delenv("RANK", raising=False)

    def command(*ancestors: list[str], ranks: int = 1, script: str = SCRIPT, rank: str | None = None) -> list[str]:
        monkeypatch.setattr(sys, "argv", [script, "--whatever"])
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        parents = [Process(words) for words in ancestors]
        monkeypatch.setattr(psutil.Process, "parents", lambda self: parents)
        line = Relaunch().command(["--resume", "a run", "name=it's"], ranks)
        words = shlex.split(line)
        assert words[:3] == ["cd", str(folder), "&&"]
        assert words[-3:] == ["--resume", "a run", "name=it's"]
        return words[3:-3]

    return command


INNER = ["python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x", SCRIPT, "--ds_config", "a.json"]
SHELL = ["bash", "-c", f"deepspeed {SCRIPT}"]


@pytest.mark.parametrize(
    ("ancestors", "expected"),
    [
        (
            [INNER, ["python", "/opt/bin/deepspeed", "--num_gpus", "2", "--master_port", "1", SCRIPT, "-x"], SHELL],
            ["/opt/bin/deepspeed", "--num_gpus", "2", "--master_port", "1"],
        ),
        ([INNER, [".venv/bin/python", ".venv/bin/deepspeed", SCRIPT]], [".venv/bin/deepspeed"]),
        ([["python", "/b/torchrun", "--nproc-per-node=2", SCRIPT]], ["/b/torchrun", "--nproc-per-node=2"]),
        (
            [["python3", "-u", "-m", "torch.distributed.run", "--standalone", SCRIPT]],
            [".venv/bin/python", "-u", "-m", "torch.distributed.run", "--standalone"],
        ),
        (
            [["python", "/b/accelerate", "launch", "--num_processes", "2", SCRIPT]],
            ["/b/accelerate", "launch", "--num_processes", "2"],
        ),
        ([SHELL], [".venv/bin/python"]),
        ([["timeout", "60", "python", SCRIPT], SHELL], [".venv/bin/python"]),
    ],
)
def test_the_outermost_launcher_is_repeated_with_its_own_flags(started, ancestors, expected) -> None:
    assert started(*ancestors) == [*expected, SCRIPT]


def test_a_launcher_without_a_folder_is_looked_up_and_else_left_as_it_is(started, monkeypatch) -> None:
    """A wrapped launcher's command line holds its bare name; a file of that name in the folder is not it."""
    monkeypatch.setattr(relaunch.shutil, "which", {"torchrun": "/b/torchrun"}.get)
    assert started(["torchrun", "--standalone", SCRIPT]) == ["/b/torchrun", "--standalone", SCRIPT]
    assert started(["deepspeed", SCRIPT]) == ["deepspeed", SCRIPT]


def test_ranks_of_an_unknown_launcher_get_deepspeeds_with_their_number(started) -> None:
    found = started(["srun", "-n", "2", "python", SCRIPT], ranks=2, rank="1")
    assert found == [".venv/bin/deepspeed", "--num_gpus", "2", SCRIPT]


def test_the_script_of_another_folder_keeps_its_whole_path(started) -> None:
    script = "/elsewhere/m5ds/pretrain.py"
    assert started(["python", "/b/deepspeed", script], script=script) == ["/b/deepspeed", script]


def test_a_launcher_that_dies_later_is_remembered(started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [Process(["python", "/b/torchrun", SCRIPT])])
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    before = Relaunch()
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [])
    assert "/b/torchrun m5ds/pretrain.py" in before.command([], 1)


def test_flags_of_the_run_are_kept(tmp_path: Path) -> None:
    arguments = argparse.Namespace(ds_config="d s.json", config="c.yaml", traceback=True)
    assert resuming(arguments, tmp_path) == [
        *("--ds_config", "d s.json", "--config", "c.yaml", "--resume", str(tmp_path), "--traceback")
    ]
    arguments.traceback = False
    assert "--traceback" not in resuming(arguments, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "train", "expected"),
    [
        (["train.total_steps=400", "seed=1"], TrainConfig(total_steps=400), ["seed=1", "train.total_steps=800"]),
        ([], TrainConfig(total_steps=120), ["train.total_steps=240"]),
        (["train.epochs=3"], TrainConfig(epochs=3), ["train.epochs=6"]),
        (["train.epochs=null"], TrainConfig(total_steps=9), ["train.epochs=null", "train.total_steps=18"]),
    ],
)
def test_twice_as_long_names_the_length_once_and_in_the_runs_own_unit(overrides, train, expected) -> None:
    assert doubled(overrides, train, train.total_steps or 77) == expected


def test_launchers_are_told_from_programs_that_only_name_the_script() -> None:
    assert relaunch.is_launcher(["deepspeed", "--include", "localhost:0"])
    assert not relaunch.is_launcher(["vim"])
    assert not relaunch.is_launcher(["python", "-m", "pdb"])


@pytest.mark.parametrize("name", ["deepspeed", "ds", "torchrun", "accelerate", "accelerate-launch"])
def test_launchers_consoles_are_known_wherever_they_lie(name) -> None:
    assert relaunch.is_launcher([f"/some/bin/{name}", "--x"])
    assert not relaunch.is_launcher(["/some/bin/env", name])


@pytest.mark.parametrize("module", ["deepspeed.launcher.runner", "torch.distributed.run", "accelerate.commands.launch"])
def test_launchers_modules_are_known_after_their_flag(module) -> None:
    assert relaunch.is_launcher(["python", "-u", "-m", module])
    assert not relaunch.is_launcher(["python", "-u", module, "-m"])


def test_a_launcher_with_a_python_before_its_console_script_and_a_flag_of_python(started) -> None:
    python_with_flag = ["python3.11", "-m", "torch.distributed.run", SCRIPT]
    assert started(python_with_flag) == [".venv/bin/python", "-m", "torch.distributed.run", SCRIPT]
    assert started(["/usr/bin/python3", "torchrun", SCRIPT]) == ["./torchrun", SCRIPT]


def test_a_process_that_names_the_script_first_or_not_at_all_is_no_launcher(started) -> None:
    assert started([SCRIPT, "deepspeed"], rank="0") == [".venv/bin/deepspeed", "--num_gpus", "1", SCRIPT]
    assert started(["deepspeed", "other.py"], rank="0", ranks=3) == [".venv/bin/deepspeed", "--num_gpus", "3", SCRIPT]


def test_the_scripts_first_place_in_the_command_counts(started) -> None:
    assert started(["python", "/b/deepspeed", SCRIPT, "--config", SCRIPT]) == ["/b/deepspeed", SCRIPT]


def test_a_process_that_cannot_be_read_is_passed_over(started, monkeypatch) -> None:
    class Gone:
        def cmdline(self):
            raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(sys, "argv", [SCRIPT])
    parents = [Process(["python", "/b/torchrun", SCRIPT]), Gone()]
    monkeypatch.setattr(psutil.Process, "parents", lambda self: parents)
    assert "/b/torchrun m5ds/pretrain.py" in Relaunch().command([], 1)


def test_of_two_launchers_the_outermost_is_repeated(started) -> None:
    inner = ["python", "/b/torchrun", SCRIPT]
    assert started(inner, ["python", "/b/deepspeed", SCRIPT], SHELL) == ["/b/deepspeed", SCRIPT]


def test_files_of_the_working_folder_never_become_bare_names(started) -> None:
    found = started(["python", "deepspeed", "run.py"], script="run.py")
    assert found == ["./deepspeed", "./run.py"]
