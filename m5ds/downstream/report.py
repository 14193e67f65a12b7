"""One report over the results of any number of tasks, stages and baselines: tables, comparisons, plots, examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m5ds.data.manifest import read_manifest
from m5ds.downstream import paper_numbers, plots
from m5ds.downstream.bootstrap import Interval, bootstrap_seeds, keys_of, seed_interval
from m5ds.downstream.document import Block, Card, Code, Document, Drawing, Gallery, Grid, Heading, Text
from m5ds.downstream.pictures import find_products
from m5ds.downstream.results import RESULTS, Result, Table, compare, read_result

TITLES = {
    "classification": "Classification",
    "clustering": "Clustering",
    "coarse_retrieval": "Coarse retrieval (same category)",
    "instance_retrieval": "Instance retrieval (same product)",
    "robustness": "Robustness",
}
COMPARED = {
    "classification": ("test", ("accuracy", "macro_accuracy")),
    "clustering": ("k-means", ("nmi", "purity", "ari")),
    "coarse_retrieval": ("standard", ("ap@10", "prec@1", "ndcg@10")),
    "instance_retrieval": ("standard", ("ap@10", "recall@10")),
}
"""Task -> (table, metrics) of the paired comparisons."""
_ORDER = ("untrained", "pretrain", "finetune")


@dataclass(frozen=True)
class Loaded:
    """A result, where it was read, and its command."""

    directory: Path
    result: Result
    tree: dict[str, Any]


def load_results(paths: Iterable[str | Path]) -> list[Loaded]:
    """Every result in or under the paths, tasks in the paper's order. `ValueError` where there is none."""
    found: dict[Path, Loaded] = {}
    for path in map(Path, paths):
        files = sorted(path.rglob(RESULTS)) if path.is_dir() else []
        if not files:
            raise ValueError(f"{path}: no {RESULTS} in or under it; name folders that tools/finetune.py wrote")
        for file in files:
            if file.resolve() not in found:
                found[file.resolve()] = Loaded(file.parent, *read_result(file.parent))
    return sorted(found.values(), key=_place)


def _place(loaded: Loaded) -> tuple[int, int, str]:
    task, stage = loaded.result.task, loaded.result.stage
    return list(TITLES).index(task), _ORDER.index(stage) if stage in _ORDER else -1, stage


def build(loaded: Sequence[Loaded], *, m5product: bool = False, shards: str | None = None) -> Document:
    """The document. `m5product` puts the paper's numbers beside ours; `shards` says where the data lies now."""
    results = [item.result for item in loaded]
    document = Document("Downstream evaluation")
    document.add(*_opening(results))
    document.add(*_paper_table(results, m5product))
    for task, title in TITLES.items():
        chosen = [result for result in results if result.task == task]
        if chosen:
            document.add(Heading(title), *_task_tables(task, chosen))
    document.add(*_over_seeds(results))
    document.add(*_comparisons(results))
    document.add(*_drawings(results, shards))
    document.add(*_examples(results, shards))
    commands = "\n".join(f"{item.tree['command']}   # {item.directory}" for item in loaded)
    document.add(Heading("Commands"), Code(commands))
    return document


def write_report(document: Document, out: Path) -> tuple[Path, Path]:
    """OUT/report.html and OUT/report.md."""
    out.mkdir(parents=True, exist_ok=True)
    page, text = out / "report.html", out / "report.md"
    page.write_text(document.to_html())
    text.write_text(document.to_markdown())
    return page, text


def _opening(results: Sequence[Result]) -> list[Block]:
    rows: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        data = f"{result.split} of {result.shards}", result.manifest_hash[:12]
        rows.setdefault((result.stage, result.source, result.fingerprint[:12], *data), []).append(result.task)
    return [
        Text(
            "Numbers are estimates with 95 % bootstrap intervals over products. 'standard' is the textbook protocol,"
            " 'official' the released code's (AP over hits only, k cut to the positives, positives counted outside the"
            " gallery, the query dropped after the top k)."
        ),
        Grid(
            ["stage", "model", "weights", "data", "manifest", "tasks"],
            [[*described, ", ".join(done)] for described, done in rows.items()],
        ),
    ]


def _cell(value: Interval | None) -> str:
    return "" if value is None else f"{100 * value.estimate:.2f} [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def _task_tables(task: str, results: Sequence[Result]) -> list[Block]:
    """One grid a table name (protocol), one row a stage; robustness has a row a condition."""
    blocks: list[Block] = []
    if task == "robustness":
        for result in results:
            metrics = list(result.tables[0].metrics)
            metrics = [name for name in metrics if name.partition("@")[0] in ("ap", "prec", "accuracy")]
            rows = [
                [table.name, *(_cell(table.metrics.get(name)) for name in metrics), str(table.facts["scored_queries"])]
                for table in result.tables
            ]
            blocks.append(Grid(["condition", *metrics, "queries"], rows, f"{result.stage}, %"))
            for name, reason in result.extras.get("not_scored", {}).items():
                blocks.append(Text(f"{name}: not scored, {reason}"))
        return blocks
    names = list(dict.fromkeys(table.name for result in results for table in result.tables))
    for name in names:
        pairs = [(r, t) for r in results for t in r.tables if t.name == name]
        metrics = list(dict.fromkeys(metric for _, table in pairs for metric in table.metrics))
        rows = [[result.stage, *(_cell(table.metrics.get(m)) for m in metrics)] for result, table in pairs]
        blocks.append(Grid(["stage", *metrics], rows, f"{name}, %: {_facts(pairs[0][1])}"))
        blocks += _group_grid(pairs)
    return blocks


def _facts(table: Table) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in table.facts.items() if value not in ([], "")
    )


def _group_grid(pairs: Sequence[tuple[Result, Table]]) -> list[Block]:
    groups = list(dict.fromkeys(name for _, table in pairs for name in table.groups))
    if not groups:
        return []
    order = [name for name in ("head", "medium", "tail", "unseen") if name in groups]
    rows = []
    for result, table in pairs:
        cells = []
        for name in order:
            found = table.groups.get(name)
            cells.append("" if found is None else f"{100 * found['estimate']:.2f} ({found['num_products']})")
        rows.append([result.stage, *cells])
    return [Grid(["stage", *order], rows, "by training frequency of the category, % (products)")]


def _paper_table(results: Sequence[Result], m5product: bool) -> list[Block]:
    """Accuracy, mAP and Prec of the official protocol, by stage, in the shape of the paper's Table 3."""
    rows = []
    accuracy = {r.stage: r.table("test").metrics["accuracy"] for r in results if r.task == "classification"}
    for result in results:
        if result.task != "coarse_retrieval" or "official" not in [table.name for table in result.tables]:
            continue
        found = result.table("official").metrics
        reached = accuracy.get("untrained" if result.stage == "untrained" else "finetune")
        cells = [reached, *(found.get(name) for name in paper_numbers.COLUMNS[1:])]
        rows.append([f"ours, {result.stage}", *("" if c is None else f"{100 * c.estimate:.2f}" for c in cells)])
    if not rows:
        return []
    if m5product:
        for stage, table in paper_numbers.ADDING_MODALITIES.items():
            for name, values in table.items():
                rows.append([f"paper, {stage}, {name}", *("" if v is None else f"{v:.2f}" for v in values)])
    caption = "accuracy after finetuning; coarse retrieval under the official protocol, %"
    return [Heading("In the shape of the paper's Table 3"), Grid(["", *paper_numbers.COLUMNS], rows, caption)]


def _over_seeds(results: Sequence[Result]) -> list[Block]:
    """Where a task has several results of one stage (training seeds): mean, spread, and the difference to each other
    stage with as many. Seeds and products are both resampled; scores of clusterings have Student's t over seeds."""
    rows = []
    for task, (name, metrics) in COMPARED.items():
        stages: dict[str, list[Table]] = {}
        for result in results:
            if result.task == task and name in [table.name for table in result.tables]:
                stages.setdefault(result.stage, []).append(result.table(name))
        repeated = {stage: tables for stage, tables in stages.items() if len(tables) > 1}
        for number, (stage, tables) in enumerate(repeated.items()):
            others = [(s, t) for s, t in list(repeated.items())[:number] if len(t) == len(tables)]
            for metric in metrics:
                row = [f"{task}: {stage} ({len(tables)} seeds)", metric, _cell(_seeds(tables, metric))]
                rows.append(row)
                for other, baseline in others:
                    rows.append([f"{task}: {stage} - {other}", metric, _cell(_seeds(tables, metric, baseline))])
    if not rows:
        return []
    return [Heading("Over training seeds"), Grid(["", "metric", "%"], rows, "results of equal rank are paired")]


def _seeds(tables: Sequence[Table], metric: str, baseline: Sequence[Table] = ()) -> Interval:
    """Interval over seeds (and products, where the metric is a mean over them) of a metric or a paired difference."""
    ids = sorted(set.intersection(*(set(table.ids) for table in [*tables, *baseline])))
    if len(ids) > 1 and all(metric in table.values for table in [*tables, *baseline]):

        def stacked(chosen: Sequence[Table]) -> np.ndarray:
            places = [{name: i for i, name in enumerate(table.ids)} for table in chosen]
            return np.stack([t.values[metric][[p[i] for i in ids]] for t, p in zip(chosen, places, strict=True)])

        values_SN = stacked(tables) - (stacked(baseline) if baseline else 0.0)
        return bootstrap_seeds(values_SN, keys_of(ids))
    estimates = np.array([table.metrics[metric].estimate for table in tables])
    if baseline:
        estimates = estimates - np.array([table.metrics[metric].estimate for table in baseline])
    return seed_interval(estimates.tolist())


def _comparisons(results: Sequence[Result]) -> list[Block]:
    """Each stage against each earlier one of the same task, paired by product. Stages with several results (training
    seeds) are compared in `_over_seeds` instead."""
    rows = []
    for task, (table, metrics) in COMPARED.items():
        stages = [result.stage for result in results if result.task == task]
        chosen = [result for result in results if result.task == task and stages.count(result.stage) == 1]
        for number, result in enumerate(chosen):
            for baseline in chosen[:number]:
                for metric in metrics:
                    try:
                        difference = compare(result, baseline, table, metric)
                    except ValueError:
                        continue  # another split or protocol: nothing to pair
                    verdict = "yes" if difference.excludes_zero else "no"
                    rows.append([f"{task}: {result.stage} - {baseline.stage}", metric, _cell(difference), verdict])
    if not rows:
        return []
    return [
        Heading("Paired comparisons"),
        Grid(["difference", "metric", "% points", "excludes zero"], rows, "paired bootstrap over products"),
    ]


def _drawings(results: Sequence[Result], shards: str | None) -> list[Block]:
    blocks: list[Block] = []

    def add(svg: str | None, caption: str) -> None:
        if svg is not None:
            blocks.append(Drawing(svg, caption))

    robust = [result for result in results if result.task == "robustness"]
    for result in robust:
        add(plots.subset_lattice(result), f"Every modality subset ({result.stage}): mAP@10 of coarse retrieval.")
    add(plots.missing_curves(robust), "mAP@10 against the missing rate; shaded: 95 % interval.")
    add(plots.noise_bars(robust), "Noise: shuffled pairs and damaged files.")
    for result in robust:
        for name, correlation in result.extras.get("correlation", {}).items():
            title = f"Mean cosine between modalities, {name} states ({result.stage})"
            add(plots.heat_map(correlation["cosine"], correlation["names"], name), title)
    labelled = [result for result in results if result.task in ("classification", "coarse_retrieval")]
    add(plots.long_tail(labelled, {"classification": "accuracy", "coarse_retrieval": "mAP@10"}), "The long tail.")
    for result in results:
        if result.task == "clustering":
            add(plots.projection(result, _categories(result, shards)), f"t-SNE of the embeddings ({result.stage}).")
        if result.task == "classification":
            add(plots.learning_curve(result), f"Learning curve of classification ({result.stage}).")
    return [Heading("Plots"), *blocks] if blocks else []


def _categories(result: Result, shards: str | None) -> Sequence[str]:
    try:
        return read_manifest(shards or result.shards).categories
    except ValueError:
        return ()


def _examples(results: Sequence[Result], shards: str | None) -> list[Block]:
    blocks: list[Block] = []
    for result in results:
        examples = result.extras.get("examples") or []
        if not examples:
            continue
        wanted = {row["query"] for row in examples} | {found["id"] for row in examples for found in row["found"]}
        try:
            shown = find_products(shards or result.shards, result.split, wanted)
        except (ValueError, OSError) as error:
            blocks.append(Text(f"{TITLES[result.task]} ({result.stage}): no pictures, {error}"))
            continue

        def card(name: str, correct: bool | None, shown=shown) -> Card:
            product = shown.get(name)
            return Card("", name, correct) if product is None else Card(product.picture, product.title, correct)

        rows = [
            [card(row["query"], None), *(card(found["id"], found["relevant"]) for found in row["found"])]
            for row in examples
        ]
        blocks.append(Gallery(rows, f"{TITLES[result.task]} ({result.stage}): query, then what was found."))
    return [Heading("Retrieval examples"), *blocks] if blocks else []
