"""Pretrain M5-MMT and its relatives under DeepSpeed:

    deepspeed m5ds/pretrain.py --ds_config configs/zero3.json [--config RUN.yaml] [--resume auto|PATH] [key=value ...]

With no other argument it runs configs/run/quickstart.yaml. Exit codes: 0 done; 2 bad input, one line says what; 3 a
loss became infinite or NaN; 128 + signal when asked to stop, after a checkpoint. docs/training.md.
"""

import sys
from pathlib import Path

# The launcher puts this file's folder first on the path, where `m5ds/data` and others would shadow top-level modules.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from m5ds.train import runtime

if __name__ == "__main__":
    runtime.prepare_environment()

    from m5ds.train.command import main

    sys.exit(main())
