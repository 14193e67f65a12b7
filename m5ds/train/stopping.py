"""Requests to stop: signals to this rank, and the death of the launcher above it.

A request only sets a flag; the loop reduces it over ranks, so that all of them save together and leave. SIGTERM to the
`deepspeed` command ends only that process and leaves `launch.py` and the ranks behind (FINDINGS), so a rank also
watches its launchers: when one is gone, that is a request to stop.
"""

import os
import signal
import types
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LAUNCHER_DIED = signal.SIGTERM


class StopRequest:
    """`requested` is the number of the signal to stop for, or 0."""

    def __init__(self) -> None:
        self._signal = 0
        self._before: dict[int, signal.Handlers | int | None] = {}
        self._launchers = _launchers()

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = before  # type: ignore[assignment]
            signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: at once, without a checkpoint
        self._signal = self._signal or number

    @property
    def requested(self) -> int:
        """Cheap enough for every step: two small reads of /proc."""
        if not self._signal and any(_parent(pid) != parent for pid, parent in self._launchers):
            self._signal = LAUNCHER_DIED
        return self._signal


def _launchers() -> list[tuple[int, int]]:
    """(process, its parent) along the chain rank -> launch.py -> deepspeed; empty under any other launcher.

    A plain `python m5ds/pretrain.py` may outlive its shell, so nothing is watched then.
    """
    rank, launcher = os.getpid(), os.getppid()
    if "deepspeed.launcher.launch" not in _command(launcher):
        return []
    watched = [(rank, launcher)]
    runner = _parent(launcher)
    if runner > 1 and "deepspeed" in _command(runner):
        watched.append((launcher, runner))
    return watched


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        # The second field, the command's name, stands in parentheses and may hold spaces.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
