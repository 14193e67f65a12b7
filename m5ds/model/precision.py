"""What is computed in float32 although weights and activations may be bf16 or fp16 (DESIGN section 5)."""

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """The value in float32; float64 stays, so that tests can tell a mistake from rounding."""
    return value if value.dtype == torch.float64 else value.float()
