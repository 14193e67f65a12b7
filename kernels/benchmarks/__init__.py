"""Microbenchmarks of the ops: `python kernels/benchmarks/run.py`. One module an op, with `cases(device, quick)`."""
