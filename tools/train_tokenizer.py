"""Train a SentencePiece tokenizer on the train split of a shard directory.

python tools/train_tokenizer.py SHARDS --out PATH

PATH is a .model file or a directory; `data.tokenizer.path` takes both.
"""

import argparse
import warnings
from pathlib import Path

from m5ds.cli import run_tool
from m5ds.data.shards.manifest import read_manifest
from m5ds.data.shards.records import iterate_records, sentences
from m5ds.data.tokenizer import train_tokenizer


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="the shard directory, a path or an fsspec URL")
    parser.add_argument("--out", type=Path, required=True, help="a .model file or a directory")
    parser.add_argument("--vocab-size", type=int, default=8000, help="pieces of the model (default: 8000)")
    parser.add_argument(
        "--max-products", type=int, default=500_000, help="train on the first so many (default: 500000)"
    )
    parser.add_argument("--with-i18n", action="store_true", help="also train on the titles and descriptions in i18n")
    parser.add_argument("--num-threads", type=int, default=1, help="part of the result: 1 and 2 differ (default: 1)")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    manifest = read_manifest(arguments.shards)
    texts = (
        sentence
        for record in iterate_records(arguments.shards, manifest, "train", arguments.max_products)
        for sentence in sentences(record, arguments.with_i18n)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenizer = train_tokenizer(texts, arguments.vocab_size, arguments.out, num_threads=arguments.num_threads)
    for warning in caught:
        print(f"warning: {warning.message}")
    title = next(iterate_records(arguments.shards, manifest, "train", 1))["title"]
    print(f"{arguments.out}: {tokenizer.vocab_size} tokens; {title!r} is {len(tokenizer.encode(title))} of them")


if __name__ == "__main__":
    run_tool(main)
