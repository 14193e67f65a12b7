"""Requests to stop: signals and a launcher that died."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m5ds.train import stopping
from m5ds.train.stopping import StopRequest

CHILD = """
import sys, time
from m5ds.train import stopping
stopping._command = lambda pid: "python -m deepspeed.launcher.launch"
with stopping.StopRequest() as stop:
    print("ready", flush=True)
    end = time.monotonic() + 20
    while not stop.requested and time.monotonic() < end:
        time.sleep(0.05)
    open(sys.argv[1], "w").write(str(int(stop.requested)))
"""


def test_signal_sets_the_flag_and_the_old_handler_returns() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as stop:
        assert stop.requested == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_ignored_hangup_stays_ignored() -> None:
    """Under nohup a closed terminal must not stop the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_the_launcher_a_dead_parent_means_nothing(monkeypatch) -> None:
    monkeypatch.setattr(stopping, "_command", lambda pid: "bash")
    assert stopping._launchers() == []


def test_death_of_the_launcher_is_a_request_to_stop(tmp_path) -> None:
    """A shell stands for the launcher: it starts the child, and is killed so that it cannot tell the child."""
    out = tmp_path / "signal"
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}, {str(out)!r}])",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "ready\n"
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 20
    while not (out.exists() and out.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert out.read_text() == str(int(stopping.LAUNCHER_DIED))


def test_these_signals_are_requests_and_the_first_one_counts() -> None:
    assert set(stopping.SIGNALS) == {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    for first in stopping.SIGNALS:
        with StopRequest() as stop:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGUSR1 if first != signal.SIGUSR1 else signal.SIGTERM)
            assert stop.requested == first
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == before


def test_ctrl_c_twice_ends_at_once_and_once_after_another_signal_does_not() -> None:
    stop = StopRequest()
    stop._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)
    other = StopRequest()
    other._note(signal.SIGTERM, None)
    other._note(signal.SIGINT, None)
    assert other.requested == signal.SIGTERM


class Processes:
    """A table of processes in place of /proc: number -> (command line, parent)."""

    def __init__(self, monkeypatch, table: dict[int, tuple[str, int]]) -> None:
        self.table = table
        monkeypatch.setattr(os, "getpid", lambda: 30)
        monkeypatch.setattr(os, "getppid", lambda: 20)
        monkeypatch.setattr(stopping, "_command", lambda pid: self.table[pid][0])
        monkeypatch.setattr(stopping, "_parent", lambda pid: self.table[pid][1])


LAUNCH = "python -u -m deepspeed.launcher.launch --x"


@pytest.mark.parametrize(
    ("runner", "watched"),
    [
        ("/bin/python /bin/deepspeed pretrain.py", [(30, 20), (20, 10)]),
        ("bash", [(30, 20)]),
    ],
)
def test_the_chain_of_launchers_is_watched_and_no_shell(monkeypatch, runner, watched) -> None:
    Processes(monkeypatch, {30: ("rank", 20), 20: (LAUNCH, 10), 10: (runner, 1)})
    assert stopping._launchers() == watched


def test_a_launcher_without_a_parent_is_watched_alone(monkeypatch) -> None:
    """Process 1 adopts those whose parent died; it is no launcher, whatever it is called."""
    Processes(monkeypatch, {30: ("rank", 20), 20: (LAUNCH, 1), 1: ("deepspeed", 0)})
    assert stopping._launchers() == [(30, 20)]
    Processes(monkeypatch, {30: ("rank", 20), 20: (LAUNCH, 2), 2: ("deepspeed", 1)})
    assert stopping._launchers() == [(30, 20), (20, 2)]


@pytest.mark.parametrize("orphan", [30, 20])
def test_the_death_of_either_launcher_is_a_request(monkeypatch, orphan) -> None:
    processes = Processes(monkeypatch, {30: ("rank", 20), 20: (LAUNCH, 10), 10: ("deepspeed", 1)})
    stop = StopRequest()
    assert stop.requested == 0
    processes.table[orphan] = (processes.table[orphan][0], 1)
    assert stop.requested == signal.SIGTERM
    processes.table[orphan] = (processes.table[orphan][0], 20 if orphan == 30 else 10)
    assert stop.requested == signal.SIGTERM, "a request stays"


def test_what_proc_says_of_a_process_and_of_one_that_is_gone(monkeypatch) -> None:
    texts = {"/proc/7/stat": "7 (a (b) 9 c) S 42 7 7", "/proc/7/cmdline": "python\0-m\0x\0"}

    def read_text(path):
        if str(path) not in texts:
            raise FileNotFoundError(path)
        return texts[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert (stopping._parent(7), stopping._command(7)) == (42, "python -m x ")
    assert (stopping._parent(8), stopping._command(8)) == (0, "")
