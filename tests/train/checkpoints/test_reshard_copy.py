"""The universal copy of a checkpoint: DeepSpeed's converter is called as its own process, by rank 0 alone."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ranks_as_threads import RanksAsThreads

from m5ds.train.checkpoints import reshard


@pytest.fixture
def runs(monkeypatch):
    """Each start of the converter: (command, options). `code` and `output` are what it ends with."""
    made = SimpleNamespace(calls=[], code=0, output="")

    def run(command, **options):
        made.calls.append((command, options))
        return SimpleNamespace(returncode=made.code, stdout=made.output)

    monkeypatch.setattr(reshard.subprocess, "run", run)
    return made


def test_the_copy_stands_beside_its_tag_and_replaces_an_unfinished_one(tmp_path, runs, monkeypatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "kept")
    unfinished = tmp_path / "universal-step-00000004"
    unfinished.mkdir()
    (tmp_path / "step-00000004").mkdir()
    assert reshard.to_universal(tmp_path, "step-00000004") == "universal-step-00000004"
    assert not unfinished.exists() and (tmp_path / "step-00000004").exists()
    ((command, options),) = runs.calls
    assert command[:3] == [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    assert dict(zip(command[3::2], command[4::2], strict=True)) == {
        "--input_folder": str(tmp_path / "step-00000004"),
        "--output_folder": str(unfinished),
        "--num_extract_workers": "1",
        "--num_merge_workers": "1",
    }
    # The converter is not one of the ranks: their variables would make it wait for the others.
    inherited = set(options["env"])
    assert not inherited & {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    assert options["env"]["TOKENIZERS_PARALLELISM"] == "kept"
    assert (options["stdout"], options["stderr"], options["text"]) == (subprocess.PIPE, subprocess.STDOUT, True)


def test_rank_0_alone_converts_and_its_failure_is_raised_on_all(runs, monkeypatch) -> None:
    ranks = RanksAsThreads(monkeypatch, 3)
    assert ranks.run(lambda _: reshard.to_universal(Path("root"), "tag")) == ["universal-tag"] * 3
    assert len(runs.calls) == 1
    runs.code, runs.output = 1, "first" + "x" * 1996 + "last"
    errors = ranks.run(lambda _: reshard.to_universal(Path("root"), "tag"))
    for error in errors:
        assert isinstance(error, RuntimeError)
        start, _, output = str(error).partition("\n")
        assert start == "root/tag: DeepSpeed could not convert it for another number of ranks:"
        assert len(output) == 2000 and output.startswith("x") and output.endswith("last")


def test_the_copy_is_removed_by_rank_0_once_every_rank_has_read_it(tmp_path, monkeypatch) -> None:
    for name in ("universal-tag", "tag"):
        (tmp_path / name).mkdir()
    ranks = RanksAsThreads(monkeypatch, 2)
    removers = []
    monkeypatch.setattr(reshard.shutil, "rmtree", lambda path, **_: removers.append((ranks.rank(), path)))

    def leave(rank: int) -> bool:
        if rank == 1:
            seen = not removers  # rank 0 waits for this rank
        reshard.remove(tmp_path, "universal-tag")
        return rank == 0 or seen

    assert ranks.run(leave) == [True, True]
    assert removers == [(0, tmp_path / "universal-tag")]


def test_a_copy_that_is_gone_is_no_error(tmp_path) -> None:
    reshard.remove(tmp_path, "universal-tag")
    (tmp_path / "universal-tag").mkdir()
    reshard.remove(tmp_path, "universal-tag")
    assert list(tmp_path.iterdir()) == []
