"""What a run's folder says of it, and which folder it is."""

import json
from pathlib import Path

from m5ds import config
from m5ds.train.checkpoints import run_directory

QUICKSTART = Path(__file__).resolve().parents[3] / "configs/run/quickstart.yaml"


def test_every_start_of_a_run_is_kept_with_what_it_was_resolved_to(tmp_path, monkeypatch):
    directory = tmp_path / "runs" / "x"
    for steps in (7, 9):
        monkeypatch.setattr("sys.argv", ["m5ds/pretrain.py", f"train.total_steps={steps}", "name=a b"])
        run = config.load(QUICKSTART, [f"train.total_steps={steps}"])
        run_directory.write_description(directory, run, {"train_batch_size": steps}, {"commit": f"c{steps}"})
    assert config.load(directory / "config.yaml") == run
    assert json.loads((directory / "ds_config.json").read_text()) == {"train_batch_size": 9}
    starts = json.loads((directory / "run.json").read_text())
    assert [(start["command"], start["commit"]) for start in starts] == [
        ("m5ds/pretrain.py train.total_steps=7 'name=a b'", "c7"),
        ("m5ds/pretrain.py train.total_steps=9 'name=a b'", "c9"),
    ]
    assert all(start["time"].endswith("Z") and len(start["time"]) == 20 for start in starts)
    assert sorted(path.name for path in directory.iterdir()) == ["config.yaml", "ds_config.json", "run.json"]


def test_what_a_run_is_can_be_read_by_people(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x"])
    monkeypatch.setattr("time.gmtime", lambda: (2026, 11, 30, 9, 5, 7, 0, 334, 0))
    run_directory.write_description(tmp_path, config.load(QUICKSTART), {"a": {"b": 1}}, {"c": 2})
    assert (tmp_path / "ds_config.json").read_text() == '{\n  "a": {\n    "b": 1\n  }\n}\n'
    start = '[\n {\n  "time": "2026-11-30T09:05:07Z",\n  "command": "x",\n  "c": 2\n }\n]\n'
    assert (tmp_path / "run.json").read_text() == start


def test_a_relative_folder_is_that_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for resume in ("none", "auto"):
        assert run_directory.choose("runs", "q", resume) == tmp_path / "runs/q"
    (tmp_path / "runs/q/checkpoints").mkdir(parents=True)
    assert run_directory.choose("other", "p", "runs/q") == tmp_path / "runs/q"
    assert run_directory.choose("runs", "q", "none") == tmp_path / "runs/q-2"
    assert run_directory.choose("runs", "q", "auto") == tmp_path / "runs/q"


def test_a_second_run_alone_is_gone_on_with_and_the_next_is_the_third(tmp_path):
    (tmp_path / "q-2/x").mkdir(parents=True)
    assert run_directory.choose(str(tmp_path), "q", "auto").name == "q-2"
    assert run_directory.choose(str(tmp_path), "q", "none").name == "q-3"


def test_only_folders_that_a_run_made_are_counted(tmp_path):
    for name in ("q", "q-2", "q-10", "q-1", "q-02", "q-old", "qq", "q-12"):
        (tmp_path / name).mkdir()
        if name != "q-12":
            (tmp_path / name / "run.json").touch()
    assert run_directory.choose(str(tmp_path), "q", "auto").name == "q-10", "q-12 is empty"
    assert run_directory.choose(str(tmp_path), "q", "none").name == "q-11"
    assert run_directory.choose(str(tmp_path), "other", "auto").name == "other"
