"""tools/bench/packing.py: packed and padded blocks agree, and the rows reach the CSV with the machine's name."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "bench" / "packing.py"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_packing", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_rows_are_appended_with_what_identifies_the_run(bench, tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "packing.csv"
    monkeypatch.setattr(bench, "LENGTHS", {"tiny": (3, 4, 5, 2, 6)})
    arguments = ["--width", "64", "--products", "2", "--repeats", "1", "--lengths", "tiny", "--out", str(path)]
    monkeypatch.setattr(sys, "argv", ["packing.py", *arguments, "--presence", "100,50"])
    for _ in range(2):
        assert bench.main() in (0, 1)
    assert "token_ratio" in capsys.readouterr().out
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["presence"] for row in rows] == ["100%", "50%"] * 2
    assert [row["padded_rows"] for row in rows] == ["40"] * 4
    assert rows[0]["token_ratio"] == "1.00"
    assert all(row["threads"] == "1" and row["torch"] == torch.__version__ and row["cpu"] for row in rows)


def test_a_width_that_no_head_fits_is_an_error(bench, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["packing.py", "--width", "100"])
    with pytest.raises(ValueError, match="--width must be a multiple of 64"):
        bench.main()
