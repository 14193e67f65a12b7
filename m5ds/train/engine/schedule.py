"""The learning rate: linear warm-up, then a cosine to a floor, as a pure function of the step.

DeepSpeed's WarmupCosineLR is not the default because it holds the rate at zero for the first two steps (its first
value is 0 "before it has started", its second log(1)); a `scheduler` in the JSON still chooses it.
"""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

FLOOR = 0.01
"""Share of the peak rate at the end of the cosine."""


def factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """What multiplies the peak rate in optimizer step `step` (from 0): 1/warmup_steps in the first, 1 after warm-up."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, total_steps - warmup_steps))
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(warmup_steps: int, total_steps: int) -> Callable[[torch.optim.Optimizer], LambdaLR]:
    """For `deepspeed.initialize(lr_scheduler=...)`, which steps it after each applied optimizer step."""
    return lambda optimizer: LambdaLR(
        optimizer, lambda step: factor(step, warmup_steps=warmup_steps, total_steps=total_steps)
    )
