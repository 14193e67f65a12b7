"""The smoke test for GPU owners says so where there is no GPU, and names only files that exist."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from gpu_smoke import steps  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_clear_line():
    done = subprocess.run([sys.executable, "tools/gpu_smoke.py"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no CUDA device is visible") and done.stderr.count("\n") == 1


def test_every_step_names_files_that_exist():
    named = [word for _, command in steps(8) for word in command if word.endswith((".py", ".json")) or "/gpu" in word]
    named = [word for word in named if "=" not in word]
    assert len(named) > 6
    assert [word for word in named if not (ROOT / word).exists()] == []
