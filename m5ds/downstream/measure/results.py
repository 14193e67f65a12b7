"""What a task leaves behind: `results.json` for people and reports, `values.parquet` for paired comparisons.

```
DIR/results.json      task, stage, model, data, settings, and a list of tables {metrics, groups, counts, examples}
DIR/values.parquet    table string, metric string, id string, value double: one row a product and metric
```
"""

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m5ds.downstream.measure import metrics
from m5ds.downstream.measure.bootstrap import Interval, bootstrap_difference, bootstrap_statistic, keys_of
from m5ds.downstream.measure.categories import LEAF
from m5ds.files import write_atomically
from m5ds.train import distributed

RESULTS, VALUES = "results.json", "values.parquet"


@dataclass(kw_only=True)
class Table:
    """One row of a report's table: numbers of one protocol, subset or condition."""

    name: str
    """Unique in the result: `standard`, `official`, `image+text -> image+text`, ..."""
    metrics: dict[str, Interval]
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and settings that the numbers depend on."""
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`head`, `medium`, `tail`, `unseen` -> interval of the main metric and number of products."""
    ids: tuple[str, ...] = ()
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Metric -> value of each product of `ids`, where the metric is a mean over products."""


@dataclass(kw_only=True)
class Result:
    """A task's outcome."""

    task: str
    """classification, clustering, coarse_retrieval, instance_retrieval or robustness."""
    stage: str
    """`pretrain` (zero-shot features), `finetune`, `untrained`, or a baseline's name."""
    source: str
    fingerprint: str
    shards: str
    manifest_hash: str
    split: str
    settings: dict[str, Any]
    tables: list[Table]
    extras: dict[str, Any] = field(default_factory=dict)
    """What plots need: examples, learning curve, projections."""

    def table(self, name: str) -> Table:
        """The table of that name; `ValueError` names those that exist."""
        for table in self.tables:
            if table.name == name:
                return table
        raise ValueError(f"{self.task}: no table {name!r}; there are {', '.join(t.name for t in self.tables)}")


def write_result(directory: Path, result: Result) -> None:
    """Both files, the JSON last."""
    directory.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Any]] = {"table": [], "metric": [], "id": [], "value": []}
    for table in result.tables:
        for metric, values in table.values.items():
            rows["table"] += [table.name] * len(values)
            rows["metric"] += [metric] * len(values)
            rows["id"] += table.ids
            rows["value"] += np.asarray(values, dtype=np.float64).tolist()
    types = {"table": pa.string(), "metric": pa.string(), "id": pa.string(), "value": pa.float64()}
    columns = {name: pa.array(rows[name], kind) for name, kind in types.items()}
    pq.write_table(pa.table(columns), directory / VALUES)
    tree = {
        "command": launched(shlex.join(sys.argv), distributed.world_size()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{name: getattr(result, name) for name in _PLAIN},
        "tables": [
            {
                "name": table.name,
                "metrics": {name: asdict(value) for name, value in table.metrics.items()},
                "facts": table.facts,
                "groups": table.groups,
            }
            for table in result.tables
        ],
    }
    write_atomically(directory / RESULTS, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def launched(command: str, world_size: int) -> str:
    """A recorded command line with its launcher in front: what a user types to have it again."""
    words = [word for word in shlex.split(command) if not word.startswith("--local_rank")]
    launcher = ["deepspeed", "--num_gpus", str(world_size)] if world_size > 1 else ["python"]
    return shlex.join([*launcher, *words])


_PLAIN = ("task", "stage", "source", "fingerprint", "shards", "manifest_hash", "split", "settings", "extras")


def read_result(directory: str | Path) -> tuple[Result, dict[str, Any]]:
    """The result with its per-product values, and the whole JSON (command, time). `ValueError` where there is none."""
    directory = Path(directory)
    path = directory / RESULTS
    if not path.is_file():
        raise ValueError(f"{directory}: no {RESULTS}; name a folder that tools/evaluate.py or tools/finetune.py wrote")
    try:
        tree = json.loads(path.read_text())
        values = _read_values(directory / VALUES)
        tables = [
            Table(
                name=entry["name"],
                metrics={name: Interval(**value) for name, value in entry["metrics"].items()},
                facts=entry["facts"],
                groups=entry["groups"],
                ids=values.get(entry["name"], ((), {}))[0],
                values=values.get(entry["name"], ((), {}))[1],
            )
            for entry in tree["tables"]
        ]
        return Result(tables=tables, **{name: tree[name] for name in _PLAIN}), tree
    except (json.JSONDecodeError, KeyError, TypeError, OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{path}: not a result of tools/finetune.py or tools/evaluate.py ({error!r}); run the task again"
        ) from error


def _read_values(path: Path) -> dict[str, tuple[tuple[str, ...], dict[str, NDArray[np.float64]]]]:
    """table -> (ids, metric -> values)."""
    found: dict[str, tuple[tuple[str, ...], dict[str, NDArray[np.float64]]]] = {}
    rows = pq.read_table(path)
    names, metrics = rows["table"].to_pylist(), rows["metric"].to_pylist()
    ids, values = rows["id"].to_pylist(), rows["value"].to_numpy()
    starts = [i for i in range(len(names)) if i == 0 or (names[i], metrics[i]) != (names[i - 1], metrics[i - 1])]
    for start, stop in zip(starts, [*starts[1:], len(names)][: len(starts)], strict=True):
        kept = found.setdefault(names[start], (tuple(ids[start:stop]), {}))
        kept[1][metrics[start]] = values[start:stop]
    return found


STATISTICS: dict[str, tuple[str, Callable[[NDArray, NDArray], float]]] = {
    "nmi": ("cluster/", metrics.normalized_mutual_information),
    "purity": ("cluster/", metrics.purity),
    "ari": ("cluster/", metrics.adjusted_rand_index),
    "macro_accuracy": ("predicted", metrics.macro_accuracy),
}
"""Metrics that are not means over products -> (prefix of the columns that they compare with `label`, function)."""


def level_of(result: Result) -> int | str:
    """The category level of the result's classes."""
    return result.settings.get("category_level", LEAF)


def compare(result: Result, baseline: Result, table: str, metric: str, **options) -> Interval:
    """Paired bootstrap interval of result minus baseline over the products that both scored.

    `ValueError`: other data or split, or a metric without the products' values.
    """
    if (result.manifest_hash, result.split) != (baseline.manifest_hash, baseline.split):
        raise ValueError("paired comparison: the results are of different data or splits; evaluate both on the same")
    if result.task != "instance_retrieval" and level_of(result) != level_of(baseline):
        raise ValueError("paired comparison: the results are of different category levels; evaluate both at one")
    sides = result.table(table), baseline.table(table)
    place = {name: i for i, name in enumerate(sides[1].ids)}
    shared = [(i, place[name]) for i, name in enumerate(sides[0].ids) if name in place]
    if len(shared) < 2:
        raise ValueError("paired comparison: fewer than 2 products were scored in both results")
    rows = [np.array(side) for side in zip(*shared, strict=True)]
    keys = keys_of([sides[0].ids[i] for i in rows[0]])
    if metric in STATISTICS:
        ours, theirs = (_statistic(side, row, metric) for side, row in zip(sides, rows, strict=True))
        return bootstrap_statistic(lambda chosen: ours(chosen) - theirs(chosen), keys, **options)
    for side in sides:
        if metric not in side.values:
            raise ValueError(f"paired comparison: {metric} of {table!r} has no value for each product in both results")
    return bootstrap_difference(sides[0].values[metric][rows[0]], sides[1].values[metric][rows[1]], keys, **options)


def _statistic(table: Table, rows: NDArray[np.int64], metric: str) -> Callable[[NDArray[np.int64]], float]:
    """The metric of chosen products, averaged over the columns that it reads."""
    prefix, function = STATISTICS[metric]
    columns = [values[rows] for name, values in table.values.items() if name.startswith(prefix)]
    if not columns:
        raise ValueError(f"paired comparison: {table.name!r} holds no {prefix} of each product; run the task again")
    label_N = table.values["label"][rows]
    return lambda chosen: float(np.mean([function(label_N[chosen], column[chosen]) for column in columns]))
