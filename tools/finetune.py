"""Finetune a pretrained checkpoint on a downstream task of the paper, and test it (docs/downstream.md):

    deepspeed tools/finetune.py TASK --checkpoint RUN
        [--shards DIR] [--config YAML] [--ds_config JSON] [--resume auto|PATH] [--out DIR] [--untrained] [key=value ...]

TASK is classification, or all: that and what tools/evaluate.py does, before and after it, with a report.
`accelerate launch` and plain `python` start it too. Exit codes as of m5ds/pretrain.py.
"""

import sys

from m5ds.train import runtime

if __name__ == "__main__":
    runtime.prepare_environment()

    from m5ds.downstream import command

    sys.exit(command.main(command.FINETUNE))
