"""The command line of tools/embed.py."""

import argparse
from pathlib import Path

from m5ds import plugins
from m5ds.downstream.command import add_checkpoint_arguments, shards_of
from m5ds.downstream.embed.embeddings import OPERATIONS, STATES
from m5ds.train import runtime
from m5ds.train.command import Parser, guarded


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="deepspeed tools/embed.py", description="Product embeddings as Parquet shards.")
    add_checkpoint_arguments(parser)
    parser.add_argument("--out", required=True, help="folder of the embeddings; a job that was killed goes on there")
    parser.add_argument("--split", default="test", help="split of the shards (default: test)")
    parser.add_argument("--modalities", help="comma-separated subset to show the model (default: all of its)")
    parser.add_argument(
        "--states", default="fused", choices=STATES, help="fused (default), contrastive, or a classifier's dense layer"
    )
    parser.add_argument("--operation", choices=OPERATIONS, help="over the modalities (default: mean)")
    parser.add_argument("--unnormalized", action="store_true", help="leave the vectors' L2 norms as they are")
    parser.add_argument("--batch-size", type=int, default=32, help="products of a batch on each rank (default: 32)")
    parser.add_argument("--num-threads", type=int, default=1, help="decoding threads of each rank (default: 1)")
    plugins.add_flag(parser)
    parser.add_argument("--shard-size", type=int, default=1024, help="products of a Parquet file (default: 1024)")
    return parser.parse_args(arguments)


def main() -> int:
    """Run and return the exit code; errors in the input are one line on rank 0's stderr."""
    return guarded(lambda: _run(parse()))


def _run(arguments: argparse.Namespace) -> int:
    for flag in ("batch_size", "num_threads", "shard_size"):
        if getattr(arguments, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(arguments, flag)}")
    plugins.load_flagged(arguments)
    runtime.start_process_group()

    from m5ds.downstream.embed.embeddings import check_modalities, read_info
    from m5ds.downstream.embed.encoding import write_embeddings
    from m5ds.downstream.embed.evaluation_data import EvaluationData
    from m5ds.downstream.embed.features import FeatureOptions
    from m5ds.downstream.embed.pretrained import load_pretrained
    from m5ds.train import distributed

    pretrained = load_pretrained(arguments.checkpoint, untrained=arguments.untrained)
    names = pretrained.model.names
    chosen = names if arguments.modalities is None else [name for name in arguments.modalities.split(",") if name]
    options = FeatureOptions(
        modalities=check_modalities(chosen, names, "--modalities"),
        states=arguments.states,
        operation=arguments.operation or ("concat" if arguments.states == "dense" else "mean"),
        normalized=not arguments.unnormalized,
    )
    data = EvaluationData(
        shards_of(arguments, pretrained),
        arguments.split,
        pretrained.model.spec,
        pretrained.tokenizer,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
    )
    out = Path(arguments.out)
    written = write_embeddings(pretrained, data, options, out, arguments.shard_size)
    if distributed.rank() == 0:
        info = read_info(out)
        print(
            f"{out}: {info.num_products} products of split {info.split}, {info.width} wide ({info.states}"
            f" {info.operation} of {'+'.join(info.modalities)}); wrote {written} of {info.num_shards} files",
            flush=True,
        )
    runtime.end_process_group()
    return 0
