"""Requests to stop: signals and a launcher that died."""

import os
import signal
import subprocess
import sys
import time

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
