"""A stopped run, resumed by pasting the line that it printed, ends where it would have, whatever launched it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launching  # noqa: E402
import pytest
import small_run  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 24
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> small_run.SmallData:
    return small_run.SmallData(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Every step's losses by number of ranks."""
    found: dict[int, dict] = {}

    def of(ranks: int) -> dict:
        if ranks not in found:
            root = tmp_path_factory.mktemp("whole")
            launching.run_ranks(launching.ENTRY, data.arguments(root, steps=STEPS), ranks, timeout=500)
            found[ranks] = small_run.recorded(root / "quickstart")
        return found[ranks]

    return of


def start(words: list[str], directory: Path) -> subprocess.Popen[str]:
    with (directory / "output.txt").open("w") as output:
        return subprocess.Popen(
            words,
            cwd=directory,
            env=launching.environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ([str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", "PORT"], 2),
        ([sys.executable], 1),
        ([str(BIN / "torchrun"), "--nproc-per-node=2", "--master-port=PORT"], 2),
    ],
    ids=["deepspeed", "python", "torchrun"],
)
def test_the_pasted_line_ends_where_the_run_would_have(launcher, ranks, data, uninterrupted, tmp_path) -> None:
    """Pasted into a plain shell elsewhere, without the virtual environment; length, name and folder are overrides."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "m5ds").symlink_to(launching.ROOT / "m5ds")
    port = str(launching.free_port())
    words = [word.replace("PORT", port) for word in launcher]
    arguments = data.arguments(Path("my runs"), "--traceback", "name=it's one", steps=STEPS)
    process = start([*words, "m5ds/pretrain.py", *arguments], folder)
    run, output = folder / "my runs" / "it's one", folder / "output.txt"
    try:
        deadline = time.monotonic() + 600
        while not (run / "metrics.jsonl").exists() or len(small_run.recorded(run)) < 3:
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()[-4000:]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=120)
        assert launching.wait_until_gone(process.pid, timeout=60) == []
    finally:
        launching.kill_group(process.pid)
    stopped_at = max(small_run.recorded(run))
    assert stopped_at < STEPS
    (line,) = [line for line in output.read_text().splitlines() if line.startswith("go on with: ")]
    shell = {**launching.environment(), "PATH": "/usr/bin:/bin"}
    pasted = subprocess.run(
        ["/bin/sh", "-c", line.removeprefix("go on with: ")],
        cwd="/",
        env=shell,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert pasted.returncode == 0, pasted.stderr[-4000:]
    assert small_run.recorded(run) == uninterrupted(ranks)
    assert not (folder / "my runs" / "it's one-2").exists()
