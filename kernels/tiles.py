"""Fixed tile tables of the attention kernels: one for launches and for the ahead-of-time check (kernels/aot.py)."""

HEAD_DIMS = (32, 64, 96, 128)
"""Head dims that the Triton attention kernels are built for."""
