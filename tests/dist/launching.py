"""Starts small jobs for the tests: ranks as plain processes, or the whole launcher, always under a time limit."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENTRY = ROOT / "m5ds/pretrain.py"


def environment(threads: int | None = 1, **more: str) -> dict[str, str]:
    """The test's environment on the CPU; `threads` None leaves the number to the run."""
    found = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **more}
    found.pop("OMP_NUM_THREADS", None)
    return found if threads is None else {**found, "OMP_NUM_THREADS": str(threads)}


def run_ranks(script: Path, arguments: Sequence[str], world_size: int, timeout: float) -> None:
    """Run a script on `world_size` gloo ranks; AssertionError with the output if a rank fails or time is up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world_size),
                LOCAL_SIZE=str(world_size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    deadline = time.monotonic() + timeout
    try:
        outputs = [process.communicate(timeout=max(1.0, deadline - time.monotonic()))[0] for process in ranks]
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{script.name} on {world_size} ranks did not end within {timeout} s") from error
    finally:
        for process in ranks:
            process.kill()
    for rank, (process, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{output[-4000:]}"


def launch(
    arguments: Sequence[str],
    directory: Path,
    num_ranks: int = 1,
    threads: int | None = 1,
    entry: Path = ENTRY,
) -> subprocess.Popen[str]:
    """The user's command, in a process group of its own, output to `directory/output.txt`."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port())]
    if num_ranks > 1:
        command += ["--num_gpus", str(num_ranks)]
    return _start([*command, str(entry), *arguments], directory, threads)


def launch_by_accelerate(
    arguments: Sequence[str], directory: Path, num_ranks: int, entry: Path
) -> subprocess.Popen[str]:
    """`accelerate launch` as docs/downstream.md shows it, else as `launch`."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--num_processes", str(num_ranks), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(free_port())]
    return _start([*command, str(entry), *arguments], directory, threads=1)


def _start(command: Sequence[str], directory: Path, threads: int | None) -> subprocess.Popen[str]:
    with (directory / "output.txt").open("w") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=environment(threads),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def group_members(group: int) -> list[int]:
    """Living processes of a process group, whoever their parent is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def wait_until_gone(group: int, timeout: float) -> list[int]:
    """What is left of the group after at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (left := group_members(group)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
