"""The downstream tasks of the paper from a pretrained checkpoint (docs/downstream.md):

    deepspeed tools/finetune.py TASK --checkpoint RUN
        [--shards DIR] [--config YAML] [--ds_config JSON] [--resume auto|PATH] [--out DIR] [--untrained] [key=value ...]

TASK is classification, clustering, coarse_retrieval, instance_retrieval, robustness, or all (the four with a report).
`accelerate launch` and plain `python` start it too. Exit codes as of m5ds/pretrain.py.
"""

import sys

from m5ds.train import runtime

if __name__ == "__main__":
    runtime.prepare_environment()

    from m5ds.downstream.command import main

    sys.exit(main())
