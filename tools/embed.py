"""Product embeddings of any modality subset as Parquet shards, resumable, on any number of ranks (docs/downstream.md):

deepspeed tools/embed.py --checkpoint RUN --out EMB [--shards DIR] [--split test] [--modalities image,text]
    [--states fused|contrastive|dense] [--operation concat|mean|sum] [--unnormalized]
"""

import sys

from m5ds.train import runtime

if __name__ == "__main__":
    runtime.prepare_environment()

    from m5ds.downstream.embed.command import main

    sys.exit(main())
