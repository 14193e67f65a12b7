"""One self-contained HTML page and a Markdown file over results of tools/finetune.py (docs/downstream.md):

python tools/report.py RESULT... --out DIR [--shards DIR] [--m5product]
"""

import argparse
from pathlib import Path

from m5ds.cli import run_tool
from m5ds.downstream.report.report import build, load_results, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULT", help="folders that hold results, at any depth")
    parser.add_argument("--out", required=True, help="folder of report.html and report.md")
    parser.add_argument("--shards", help="where the shards lie now, for titles and pictures (default: where they lay)")
    parser.add_argument(
        "--m5product", action="store_true", help="the data is M5Product: put the paper's numbers beside"
    )
    arguments = parser.parse_args()
    document = build(load_results(arguments.results), m5product=arguments.m5product, shards=arguments.shards)
    for path in write_report(document, Path(arguments.out)):
        print(path)


if __name__ == "__main__":
    run_tool(main)
