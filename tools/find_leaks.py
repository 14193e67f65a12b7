"""Print the attributes that give a product's category away: python tools/find_leaks.py SHARDS [--split test]"""

import argparse

from m5ds.cli import run_tool
from m5ds.downstream.attribute_leaks import find_leaks
from m5ds.downstream.baselines import read_products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("shards", help="the shard directory")
    parser.add_argument("--split", default="test", help="held-out split whose categories are guessed")
    parser.add_argument("--most", type=int, default=20, help="how many attributes at the most")
    arguments = parser.parse_args()
    leaks = find_leaks(read_products(arguments.shards, "train"), read_products(arguments.shards, arguments.split))
    print(f"{'attribute':<32}{'by':<8}{'products':>9}{'of all':>8}{'accuracy':>10}{'commonest':>11}")
    for leak in leaks[: arguments.most]:
        print(
            f"{leak.key[:31]:<32}{leak.kind:<8}{leak.num_products:>9}{leak.share:>8.2f}{leak.accuracy:>10.3f}"
            f"{leak.commonest:>11.3f}"
        )


if __name__ == "__main__":
    run_tool(main)
