"""TF-IDF and colour histograms under the downstream tasks, to stand beside a model's results (docs/downstream.md):

python tools/baselines.py --shards DIR [--config YAML] [key=value ...]
"""

import argparse

from m5ds.cli import run_tool
from m5ds.train import runtime
from m5ds.train.command import find_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="the shard directory")
    parser.add_argument("--config", default="configs/downstream/quickstart.yaml", help="the downstream YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the YAML")
    arguments = parser.parse_intermixed_args()

    from m5ds.downstream import settings as downstream_settings
    from m5ds.downstream.command import summary
    from m5ds.downstream.measure.results import write_result
    from m5ds.downstream.tasks.baseline_jobs import evaluate_baseline
    from m5ds.downstream.tasks.baselines import BASELINES
    from m5ds.downstream.tasks.evaluation import Evaluation
    from m5ds.downstream.tasks.jobs import folder_of

    settings = downstream_settings.load(find_file(arguments.config), arguments.overrides)
    evaluation = Evaluation(settings, arguments.shards)
    for name in BASELINES:
        for result in evaluate_baseline(name, evaluation):
            out = folder_of(settings) / f"{result.task}-{name.replace(' ', '-')}"
            write_result(out, result)
            print(summary(result, out), flush=True)


if __name__ == "__main__":
    runtime.prepare_environment()
    run_tool(main)
