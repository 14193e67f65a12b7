"""What a checkpoint can do: the tasks of the paper that train no encoder, or all of them with a report:

    deepspeed tools/evaluate.py TASK --checkpoint RUN
        [--shards DIR] [--config YAML] [--out DIR] [--untrained] [key=value ...]
    python tools/evaluate.py pretraining --checkpoint RUN [--checkpoint RUN ...] [--splits SPLIT ...] [--out JSON]

TASK is coarse_retrieval, instance_retrieval, clustering, linear_probe, robustness, or all: these and the classification
of tools/finetune.py, of the untrained, the pretrained and the finetuned model. `pretraining` compares runs, one a seed,
with their initial weights (docs/results.md). docs/downstream.md. Exit codes as of m5ds/pretrain.py.
"""

import sys

from m5ds.train import runtime

if __name__ == "__main__":
    runtime.prepare_environment()

    from m5ds.downstream import command

    sys.exit(command.main(command.EVALUATE))
