"""`make test-cpus` computes as older CPUs do: torch, oneDNN and MKL obey the variables that the Makefile sets."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SHOW = """
import torch
print("torch", torch.backends.cpu.get_cpu_capability())
if torch.backends.mkldnn.is_available():
    torch.relu(torch.ones(4, 4).to_mkldnn())
torch.ones(64, 64) @ torch.ones(64, 64)
"""
"""A call of each library; the verbose ones say which instructions they use."""


def emulations() -> list[tuple[str, dict[str, str]]]:
    """(what pytest is told to expect, variables) of each line of the target."""
    recipe = (ROOT / "Makefile").read_text().partition("\ntest-cpus:")[2].partition("\n\n")[0]
    lines = [line for line in recipe.splitlines() if "--expect-cpu" in line]
    return [(re.findall(r"--expect-cpu (\S+)", line)[0], dict(re.findall(r"([A-Z_]+)=(\S+)", line))) for line in lines]


EMULATIONS = emulations()
ORDER = ("DEFAULT", "AVX2", "AVX512")
ON_X86 = platform.machine() in ("x86_64", "AMD64")


def run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ATEN", "ONEDNN", "MKL"))}
    return subprocess.run(
        [sys.executable, *command], env=environment | variables, capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def test_both_older_kinds_are_there() -> None:
    assert [expected for expected, _ in EMULATIONS] == ["DEFAULT", "AVX2"]


@pytest.mark.skipif(not ON_X86, reason="variables of x86")
@pytest.mark.parametrize(("expected", "variables"), EMULATIONS)
def test_every_library_obeys(expected: str, variables: dict[str, str]) -> None:
    if ORDER.index(torch.backends.cpu.get_cpu_capability()) < ORDER.index(expected):
        pytest.skip("this CPU, or the emulation that runs this test, has less")
    shown = run(["-c", SHOW], variables | {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}).stdout
    assert f"torch {expected}" in shown
    if torch.backends.mkldnn.is_available():
        assert re.findall(r"onednn_verbose.*cpu,isa:Intel (\S+)", shown) == [
            {"DEFAULT": "SSE4.1"}.get(expected, expected)
        ]
    if mkl := re.findall(r"MKL_VERBOSE oneMKL.*", shown):
        assert "AVX-512" not in mkl[0] and ("AVX2" in mkl[0]) <= (expected == "AVX2"), mkl[0]


@pytest.mark.skipif(not ON_X86, reason="variables of x86")
def test_a_variable_that_is_ignored_stops_the_tests() -> None:
    found = run(
        ["-m", "pytest", "-q", "--expect-cpu", "AVX2", "tests/test_modality.py"], {"ATEN_CPU_CAPABILITY": "default"}
    )
    assert found.returncode == 4
    assert "torch computes with DEFAULT" in found.stdout + found.stderr
