"""Mutation testing, shared by tests/mutate.py (m5ds/) and tests/kernels/mutate.py (the Triton kernels)."""
