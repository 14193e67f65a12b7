"""Runs several command lines of m5ds/pretrain.py in one process (tests/dist/test_command.py): starting takes seconds.

Usage: worker_commands.py CASES OUT: JSON in, a list of {"arguments": [...], "stop_after": step or null}; JSON out, a
list of {"code", "stdout", "stderr"}. `stop_after` sends SIGTERM to the process itself after that many steps. A case
without arguments takes those of the line that the case before it printed for going on.
"""

import contextlib
import io
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from m5ds.train import runtime

runtime.prepare_environment()

from m5ds.pretrain import pretrain  # noqa: E402
from m5ds.train.command import guarded, parse  # noqa: E402
from m5ds.train.report.monitor import Monitor  # noqa: E402


def stopping_advance(advance, stop_after):
    done = 0

    def advance_then_stop(self: Monitor, **shown: str) -> None:
        nonlocal done
        advance(self, **shown)
        done += 1
        if done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    return advance_then_stop


def printed(output: str) -> list[str]:
    line = next(line for line in output.splitlines() if line.startswith("go on with: "))
    words = shlex.split(line)
    return words[next(place for place, word in enumerate(words) if word.endswith("pretrain.py")) + 1 :]


def main() -> None:
    cases, out = (Path(argument) for argument in sys.argv[1:])
    advance = Monitor.advance
    runtime.end_process_group = lambda: None  # DeepSpeed does not start a second group in one process
    results = []
    for case in json.loads(cases.read_text()):
        Monitor.advance = stopping_advance(advance, case.get("stop_after"))
        sys.argv = ["m5ds/pretrain.py", *(case.get("arguments") or printed(results[-1]["stdout"]))]
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = guarded(lambda: pretrain(parse()))
        results.append({"code": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()})
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
