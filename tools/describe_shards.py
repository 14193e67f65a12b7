"""Print and plot what the paper reports of its data: python tools/describe_shards.py SHARDS [--out REPORT_DIR]"""

import argparse
from pathlib import Path

from m5ds.cli import run_tool
from m5ds.data.shards.describe import gather, plots, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="the shard directory, a path or an fsspec URL")
    parser.add_argument("--out", type=Path, help="write the tables and PNG plots there too")
    arguments = parser.parse_args()
    statistics = gather(arguments.shards)
    text = tables(statistics)
    print(text, end="")
    if arguments.out is not None:
        written = plots(statistics, arguments.out)
        (arguments.out / "tables.txt").write_text(text, encoding="utf-8")
        print(f"\n{len(written)} plots and tables.txt in {arguments.out}")


if __name__ == "__main__":
    run_tool(main)
