"""The report's pictures, each an SVG text that an HTML page can hold.

Every function takes results (m5ds/downstream/measure/results.py) and returns None where they do not have what it draws.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from m5ds.downstream.measure.results import Result, Table  # noqa: E402
from m5ds.downstream.tasks.linear_probe import ALONE  # noqa: E402

METRIC = "ap@10"
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "m5",
}


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _tables(result: Result, **facts: Any) -> list[Table]:
    return [table for table in result.tables if all(table.facts.get(name) == value for name, value in facts.items())]


def subset_lattice(result: Result) -> str | None:
    """mAP@10 of every modality subset, best first, with the modalities as a grid of dots under the bars."""
    tables = _tables(result, kind="subset")
    tables = [table for table in tables if table.facts["policy"] == tables[0].facts["policy"]]
    if len(tables) < 3:
        return None
    tables.sort(key=lambda table: -table.metrics[METRIC].estimate)
    names = max((table.facts["modalities"] for table in tables), key=len)
    with plt.rc_context(_STYLE):
        figure, (bars, dots) = plt.subplots(
            2, 1, figsize=(9, 4.2), sharex=True, gridspec_kw={"height_ratios": [3, 1.3], "hspace": 0.05}
        )
        x = np.arange(len(tables))
        values = [table.metrics[METRIC] for table in tables]
        errors = [[v.estimate - v.low for v in values], [v.high - v.estimate for v in values]]
        bars.bar(
            x, [v.estimate for v in values], color="#4477aa", yerr=np.maximum(errors, 0), ecolor="#999999", capsize=1.5
        )
        bars.set_ylabel("mAP@10")
        for row, name in enumerate(names):
            has = np.array([name in table.facts["modalities"] for table in tables])
            dots.scatter(x[has], np.full(has.sum(), -row), color="#222222", s=14)
            dots.scatter(x[~has], np.full((~has).sum(), -row), color="#dddddd", s=14)
        dots.set_yticks([-row for row in range(len(names))], names)
        dots.set_xticks([])
        for side in ("left", "bottom"):
            dots.spines[side].set_visible(False)
        dots.tick_params(length=0)
        return _svg(figure)


def missing_curves(results: Sequence[Result]) -> str | None:
    """mAP@10 over the missing rate: all modalities at random, and each alone. One line style a result and policy."""
    curves: dict[tuple[str, str], list[tuple[float, Any]]] = {}
    for result in results:
        for table in _tables(result, kind="missing"):
            source = f"{result.stage}, {table.facts['policy']}"
            curves.setdefault((source, table.facts["modality"]), []).append(
                (table.facts["rate"], table.metrics[METRIC])
            )
    if not curves:
        return None
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
        sources = list(dict.fromkeys(source for source, _ in curves))
        colors = plt.get_cmap("tab10")(range(10))
        lost = list(dict.fromkeys(name for _, name in curves if name != "any"))
        for (source, name), points in curves.items():
            points.sort(key=lambda point: point[0])
            rate = [point[0] for point in points]
            value = [point[1].estimate for point in points]
            style = ["-", "--", ":", "-."][sources.index(source) % 4]
            if name == "any":
                color = colors[sources.index(source) % 10]
                axes[0].plot(rate, value, style, color=color, marker="o", ms=3, label=source)
                axes[0].fill_between(
                    rate, [p[1].low for p in points], [p[1].high for p in points], color=color, alpha=0.12
                )
            else:
                label = name if source == sources[0] else None
                axes[1].plot(rate, value, style, color=colors[lost.index(name) % 10], marker="o", ms=3, label=label)
        for axis, title in zip(axes, ("every modality at this rate", "one modality at this rate"), strict=True):
            axis.set(title=title, xlabel="missing rate", ylim=(0, None))
            if axis.has_data():
                axis.legend(frameon=False)
        axes[0].set_ylabel("mAP@10")
        return _svg(figure)


def noise_bars(results: Sequence[Result]) -> str | None:
    """mAP@10 with shuffled pairs and with damaged files, beside the clean split; a color for each result and policy."""
    bars: dict[str, dict[str, Any]] = {}
    for result in results:
        clean = [t for t in _tables(result, kind="missing", modality="any") if t.facts["rate"] == 0]
        for table in [*clean, *_tables(result, kind="shuffled"), *_tables(result, kind="damaged")]:
            policy = table.facts["policy"]
            condition = table.name.removeprefix(f"{policy}: ").replace("missing 0", "clean")
            bars.setdefault(condition, {})[f"{result.stage}, {policy}"] = table.metrics[METRIC]
    sources = list(dict.fromkeys(source for found in bars.values() for source in found))
    if len(bars) < 2:
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(9, 0.8 + 0.26 * len(bars) * len(sources)))
        height = 0.8 / len(sources)
        for number, source in enumerate(sources):
            has = [(i, found[source]) for i, found in enumerate(bars.values()) if source in found]
            y = [i + (number - (len(sources) - 1) / 2) * height for i, _ in has]
            value = [interval.estimate for _, interval in has]
            error = [[i.estimate - i.low for _, i in has], [i.high - i.estimate for _, i in has]]
            axis.barh(y, value, height, xerr=np.maximum(error, 0), ecolor="#777777", label=source)
        axis.set_yticks(range(len(bars)), list(bars))
        axis.invert_yaxis()
        axis.set_xlabel("mAP@10")
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg(figure)


def long_tail(results: Sequence[Result], metric_names: dict[str, str]) -> str | None:
    """The main metric of head, medium and tail categories, one group of bars a result."""
    rows = []
    for result in results:
        table = next((table for table in result.tables if table.groups), None)
        if table is not None:
            rows.append((f"{metric_names.get(result.task, result.task)} ({result.stage})", table.groups))
    if not rows:
        return None
    groups = [name for name in ("head", "medium", "tail", "unseen") if any(name in found for _, found in rows)]
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(9, 3))
        width = 0.8 / len(rows)
        for number, (label, found) in enumerate(rows):
            x = np.arange(len(groups)) + (number - (len(rows) - 1) / 2) * width
            value = [found.get(name, {}).get("estimate", np.nan) for name in groups]
            low = [v - found.get(name, {}).get("low", v) for v, name in zip(value, groups, strict=True)]
            high = [found.get(name, {}).get("high", v) - v for v, name in zip(value, groups, strict=True)]
            axis.bar(x, value, width, label=label, yerr=np.maximum([low, high], 0), ecolor="#777777", capsize=1.5)
        sizes = [max(found.get(name, {}).get("num_products", 0) for _, found in rows) for name in groups]
        axis.set_xticks(np.arange(len(groups)), [f"{n}\n{s} products" for n, s in zip(groups, sizes, strict=True)])
        axis.legend(frameon=False, fontsize=8)
        return _svg(figure)


def projection(result: Result, categories: Sequence[str]) -> str | None:
    """The embeddings in the plane, the ten most frequent categories in color."""
    points = result.extras.get("projection")
    if not points:
        return None
    xy_N2, label_N = np.array(points["xy"]), np.array(points["label"])
    frequent = [int(c) for c in np.argsort(-np.bincount(label_N), kind="stable")[:10] if (label_N == c).any()]
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 4.4))
        rest = ~np.isin(label_N, frequent)
        axis.scatter(xy_N2[rest, 0], xy_N2[rest, 1], s=5, color="#cccccc")
        for number, label in enumerate(frequent):
            name = categories[label] if label < len(categories) else str(label)
            axis.scatter(
                xy_N2[label_N == label, 0],
                xy_N2[label_N == label, 1],
                s=7,
                color=plt.get_cmap("tab10")(number),
                label=name,
            )
        axis.set_axis_off()
        axis.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
        return _svg(figure)


def learning_curve(result: Result) -> str | None:
    """Training loss and validation accuracy of a classifier over steps."""
    records = result.extras.get("learning_curve") or []
    train = [
        (r["step"], r["loss/classification"]) for r in records if "loss/classification" in r and r["kind"] == "train"
    ]
    accuracy = [(r["step"], r["classification/accuracy"]) for r in records if "classification/accuracy" in r]
    return _two_scales(train, accuracy, "validation accuracy", 1.0)


def label_curves(results: Sequence[Result]) -> str | None:
    """Accuracy of linear probes over the number of labels, one line a result, one color a stage."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 3.2))
        axis.set_xscale("log")
        axis.minorticks_off()
        stages = list(dict.fromkeys(result.stage.partition(",")[0] for result in results))
        named = set()
        for result in results:
            tables = [table for table in result.tables if not table.name.endswith(ALONE)]
            tables.sort(key=lambda table: table.facts["labels"])
            if len(tables) < 2:
                continue
            labels = [table.facts["labels"] for table in tables]
            found = [table.metrics["accuracy"] for table in tables]
            stage = result.stage.partition(",")[0]
            color = plt.get_cmap("tab10")(stages.index(stage) % 10)
            label = None if stage in named else stage
            named.add(stage)
            axis.plot(labels, [v.estimate for v in found], color=color, marker="o", ms=3, label=label)
            axis.set_xticks(labels, [f"{number:.0f}" for number in labels])
            axis.fill_between(labels, [v.low for v in found], [v.high for v in found], color=color, alpha=0.12)
        if not axis.has_data():
            plt.close(figure)
            return None
        axis.set(xlabel="labels", ylabel="accuracy", ylim=(0, 1))
        axis.legend(frameon=False, fontsize=8)
        return _svg(figure)


def pretraining_curve(records: Sequence[dict[str, Any]]) -> str | None:
    """Total training loss, and how many times better than chance held-out retrieval across modalities is."""
    train = [(r["step"], r["loss/total"]) for r in records if "loss/total" in r]
    name = "retrieval/average/ratio"
    return _two_scales(train, [(r["step"], r[name]) for r in records if name in r], "held-out R@1 / chance", None)


def _two_scales(
    train: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]], label: str, top: float | None
) -> str | None:
    """The training loss on the left scale, what was measured on held-out products on the right one."""
    if len(train) < 2:
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(5.6, 2.8))
        axis.plot(*zip(*train, strict=True), color="#4477aa")
        axis.set(xlabel="step", ylim=(0, None))
        axis.set_ylabel("training loss", color="#4477aa")
        if held_out:
            second = axis.twinx()
            second.spines["right"].set_visible(True)
            second.plot(*zip(*held_out, strict=True), color="#cc6677", marker="o", ms=3)
            second.set(ylim=(0, top))
            second.set_ylabel(label, color="#cc6677")
        return _svg(figure)


def heat_map(values_MM: Sequence[Sequence[float | None]], names: Sequence[str], title: str) -> str | None:
    """A small matrix over modalities with its numbers written in, blank where there is None."""
    matrix = np.array([[np.nan if value is None else value for value in row] for row in values_MM])
    if np.isnan(matrix).all():
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(4, 3.4))
        axis.imshow(matrix, cmap="viridis")
        middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                text = "" if np.isnan(value) else f"{value:.2f}"
                axis.text(
                    j, i, text, ha="center", va="center", color="white" if value < middle else "black", fontsize=8
                )
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(title)
        return _svg(figure)
