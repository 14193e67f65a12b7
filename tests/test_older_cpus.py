"""`make test-cpus` computes as older CPUs do: torch, oneDNN and MKL obey the variables that the Makefile sets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHOW = """
import torch
print("torch", torch.backends.cpu.get_cpu_capability())
torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3))
torch.ones(64, 64) @ torch.ones(64, 64)
"""


def emulations() -> list[tuple[str, dict[str, str]]]:
    """(what pytest is told to expect, variables) of each line of the target."""
    recipe = (ROOT / "Makefile").read_text().partition("\ntest-cpus:")[2].partition("\n\n")[0]
    lines = [line for line in recipe.splitlines() if "--expect-cpu" in line]
    return [(re.findall(r"--expect-cpu (\S+)", line)[0], dict(re.findall(r"([A-Z_]+)=(\S+)", line))) for line in lines]


EMULATIONS = emulations()
RANK = ("DEFAULT", "AVX2", "AVX512")
CAPABILITY = torch.backends.cpu.get_cpu_capability()


def run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ATEN", "ONEDNN", "MKL"))}
    return subprocess.run(
        [sys.executable, *command], env=environment | variables, capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def test_both_older_kinds_are_there() -> None:
    assert [expected for expected, _ in EMULATIONS] == ["DEFAULT", "AVX2"]


@pytest.mark.skipif(CAPABILITY not in RANK, reason="variables of x86")
@pytest.mark.parametrize(("expected", "variables"), EMULATIONS)
def test_every_library_obeys(expected: str, variables: dict[str, str]) -> None:
    shown = run(["-c", SHOW], variables | {"ONEDNN_VERBOSE": "1"}).stdout
    assert f"torch {expected}" in shown
    if isa := re.search(r"onednn_verbose.*cpu,isa:(.*)", shown):  # a build without oneDNN says nothing
        assert {"DEFAULT": "SSE4.1", "AVX2": "AVX2"}[expected] in isa[1], isa[1]
        assert "AVX-512" not in isa[1]


@pytest.mark.skipif(CAPABILITY not in RANK, reason="variables of x86")
def test_a_variable_that_is_ignored_stops_the_tests() -> None:
    found = run(
        ["-m", "pytest", "-q", "--expect-cpu", "AVX2", "tests/test_modality.py"], {"ATEN_CPU_CAPABILITY": "default"}
    )
    assert found.returncode == 4
    assert "torch computes with DEFAULT" in found.stdout + found.stderr
