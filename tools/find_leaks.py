"""Print what gives a held-out product's category away, and media that lie in several splits:

python tools/find_leaks.py SHARDS [--split test] [--category-level N|leaf]
"""

import argparse

import numpy as np

from m5ds.cli import run_tool
from m5ds.data.shards.leaks import find_leaks
from m5ds.data.shards.manifest import read_manifest
from m5ds.data.shards.reader import ShardReader
from m5ds.data.shards.shared_media import find_shared_media
from m5ds.downstream.measure.categories import LEAF, CategoryLevel, parse_level
from m5ds.downstream.tasks.baselines import read_products
from m5ds.downstream.tasks.labels import read_labels, unseen_facts, unseen_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="the shard directory, a path or an fsspec URL")
    parser.add_argument("--split", default="test", help="held-out split whose categories are guessed (default: test)")
    parser.add_argument("--most", type=int, default=20, help="how many attributes at the most (default: 20)")
    parser.add_argument(
        "--category-level", default=LEAF, metavar="N|leaf", help="names of a category's path that count (default: leaf)"
    )
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.shards)
    level = CategoryLevel.of(manifest.categories, parse_level(arguments.category_level))
    for line in find_shared_media(arguments.shards, manifest).lines():
        print(line)
    train, held_out = (
        map(level.relabel, read_products(arguments.shards, split)) for split in ("train", arguments.split)
    )
    leaks = find_leaks(train, held_out)
    taught_N, asked_N = (
        level.apply(read_labels(ShardReader(arguments.shards, split))) for split in ("train", arguments.split)
    )
    asked_N = asked_N[asked_N >= 0]
    facts = {"products": len(asked_N), **unseen_facts(asked_N, np.isin(asked_N, taught_N), level.names)}
    print(
        f"category_level {level.level}: {facts['tested_categories']} categories in {arguments.split}."
        f" {unseen_line(facts)}".rstrip()
    )
    print(f"{'attribute':<32}{'by':<8}{'products':>9}{'of all':>8}{'accuracy':>10}{'of seen':>9}{'commonest':>11}")
    for leak in leaks[: arguments.most]:
        of_seen = "-" if leak.seen_accuracy is None else f"{leak.seen_accuracy:.3f}"
        print(
            f"{leak.key[:31]:<32}{leak.kind:<8}{leak.num_products:>9}{leak.share:>8.2f}{leak.accuracy:>10.3f}"
            f"{of_seen:>9}{leak.commonest:>11.3f}"
        )


if __name__ == "__main__":
    run_tool(main)
