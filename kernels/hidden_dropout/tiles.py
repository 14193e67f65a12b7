"""Launch configuration of the dropout kernel: memory-bound, so one tile serves every width and architecture."""

import torch

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
ROWS, CALLS, NUM_WARPS = 8, 32, 4
"""Rows and Philox calls (of four features each) of a program: 1,024 values for 128 threads."""
