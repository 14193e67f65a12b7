"""Where this folder's tests run: a CUDA device; or, for trying the tests themselves, Triton's interpreter on a CPU with
TRITON_INTERPRET=1 M5DS_GPU_TESTS_ON=cpu (slow: name a few)."""

import os
from collections.abc import Iterator

import pytest
import torch

from m5ds.kernels.common.dispatch import force_path, interpreting

_INTERPRETED = os.environ.get("M5DS_GPU_TESTS_ON") == "cpu" and interpreting()


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device under test, every op forced to its Triton path."""
    if not _INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with force_path("triton"):
        yield torch.device("cpu" if _INTERPRETED else "cuda")
