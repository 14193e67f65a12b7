"""Results as the report reads them, and what stands under a heading of it."""

from types import SimpleNamespace

import numpy as np

from m5ds.downstream.measure.bootstrap import Interval
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.report.document import Heading
from m5ds.downstream.report.report import Loaded

IDS = tuple(f"p{i}" for i in range(8))


def result(task, stage="pretrain", tables=(), **changes):
    described = {
        "source": f"runs/{stage}/checkpoints/step-00000005",
        "fingerprint": "0123456789abcdef",
        "shards": "shards",
        "manifest_hash": "fedcba9876543210",
        "split": "test",
        "settings": {},
    }
    return Result(task=task, stage=stage, tables=list(tables), **(described | changes))


def table(name, ids=IDS, **values):
    columns = {key.replace("_at_", "@"): np.asarray(value, dtype=np.float64) for key, value in values.items()}
    metrics = {name: Interval(estimate=float(v.mean()), low=0.0, high=1.0) for name, v in columns.items()}
    return Table(name=name, metrics=metrics, ids=tuple(ids), values=columns, facts=sides("image", "text"))


def sides(query, gallery):
    return {"query_modalities": query, "gallery_modalities": gallery}


def scores(seed):
    return np.random.default_rng(seed).random(8)


def section(document, title):
    """The blocks below a heading."""
    places = [i for i, block in enumerate(document.blocks) if isinstance(block, Heading)]
    start = next(i for i in places if document.blocks[i].text == title)
    stop = next((i for i in places if i > start), len(document.blocks))
    return document.blocks[start + 1 : stop]


def headings(document):
    return [block.text for block in document.blocks if isinstance(block, Heading)]


def loaded(*results, command="c"):
    return [Loaded(SimpleNamespace(), one, {"command": command}) for one in results]
