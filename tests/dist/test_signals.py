"""SIGTERM on two ranks under the launcher: a checkpoint, no process left, the same losses after resume."""

import os
import signal
import time
from pathlib import Path

import launching  # noqa: E402
import psutil
import pytest
import small_run  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 40
FOLLOWING = 20
NAME = "quickstart"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> small_run.SmallData:
    return small_run.SmallData(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> dict[int, dict[str, float]]:
    """Every step's losses of a run of two ranks that nobody stops."""
    root = tmp_path_factory.mktemp("whole")
    launching.run_ranks(launching.ENTRY, data.arguments(root, steps=STEPS), 2, timeout=500)
    return small_run.recorded(root / NAME)


def wait_for_step(directory: Path, step: int, process, timeout: float = 400) -> None:
    deadline = time.monotonic() + timeout
    metrics = directory / NAME / "metrics.jsonl"
    while time.monotonic() < deadline:
        assert process.poll() is None, (directory / "output.txt").read_text()[-4000:]
        if metrics.exists() and metrics.read_text().count('"kind": "train"') >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within {timeout} s")


def processes(runner: int) -> dict[str, list[int]]:
    """The job's processes by role: runner -> launch.py -> ranks."""
    (launcher,) = psutil.Process(runner).children()
    ranks = sorted(launcher.children(), key=lambda process: process.pid)
    return {"runner": [runner], "launcher": [launcher.pid], "rank": [ranks[-1].pid]}


@pytest.mark.parametrize("target", ["rank", "launcher", "runner", "group"])
def test_sigterm_saves_leaves_nobody_behind_and_resumes_bit_for_bit(target, data, uninterrupted, tmp_path) -> None:
    """`rank` is the last one, `launcher` is launch.py, `runner` the deepspeed command, `group` the process group."""
    process = launching.launch(data.arguments(tmp_path, steps=STEPS), tmp_path, num_ranks=2)
    try:
        wait_for_step(tmp_path, 6, process)
        if target == "group":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            os.kill(processes(process.pid)[target][0], signal.SIGTERM)
        process.wait(timeout=60)
        assert launching.wait_until_gone(process.pid, timeout=45) == []
    finally:
        launching.kill_group(process.pid)
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output
    assert "stopped by SIGTERM" in output
    if target == "rank":
        assert process.returncode == 128 + signal.SIGTERM
    folder = tmp_path / NAME
    stopped_at = max(small_run.recorded(folder))
    assert stopped_at <= STEPS - FOLLOWING, f"stopped only at step {stopped_at}"
    saved = folder / "checkpoints" / f"step-{stopped_at:08d}"
    assert (saved / "manifest.json").is_file()
    launching.run_ranks(launching.ENTRY, data.arguments(tmp_path, "--resume", "auto", steps=STEPS), 2, timeout=500)
    resumed = small_run.recorded(folder)
    following = range(stopped_at + 1, stopped_at + FOLLOWING + 1)
    assert [resumed[step] for step in following] == [uninterrupted[step] for step in following]
    assert resumed == uninterrupted


def test_bad_input_through_the_launcher_on_two_ranks_is_one_line_and_exit_code_2(data, tmp_path) -> None:
    shards = data.damaged("without_a_shard")
    (shards / "train/000000.tar").unlink()
    process = launching.launch(data.arguments(tmp_path, shards=shards), tmp_path, num_ranks=2)
    try:
        assert process.wait(timeout=120) == 2
        assert launching.wait_until_gone(process.pid, timeout=30) == []
    finally:
        launching.kill_group(process.pid)
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output
    assert sum(line.startswith("error: ") for line in output.splitlines()) == 1
