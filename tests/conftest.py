"""`--expect-cpu`: refuse to run where torch is not restricted to the instructions that the caller asked for.

`make test-cpus` sets variables of torch, oneDNN and MKL to compute as older CPUs do. A misspelt or ignored variable
would let it run the same tests a second time and prove nothing.
"""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--expect-cpu", help="what torch.backends.cpu.get_cpu_capability() must say: DEFAULT, AVX2, ...")


def pytest_sessionstart(session: pytest.Session) -> None:
    expected, found = session.config.getoption("--expect-cpu"), torch.backends.cpu.get_cpu_capability()
    if expected not in (None, found):
        pytest.exit(f"--expect-cpu {expected}: torch computes with {found}; see ATEN_CPU_CAPABILITY", returncode=4)
