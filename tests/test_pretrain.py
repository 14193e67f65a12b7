"""The script that the launcher starts."""

import runpy
import sys
from pathlib import Path

import pytest

import m5ds
from m5ds.train import command, runtime

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
