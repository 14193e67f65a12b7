"""One report over the results of any number of tasks, stages and baselines: tables, comparisons, plots, examples."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m5ds.data.shards.manifest import read_manifest
from m5ds.downstream.measure.bootstrap import Interval, bootstrap_seeds, keys_of, seed_interval
from m5ds.downstream.measure.categories import LEAF, CategoryLevel
from m5ds.downstream.measure.results import RESULTS, Result, Table, compare, launched, level_of, read_result
from m5ds.downstream.report import plots
from m5ds.downstream.report.document import Block, Card, Code, Document, Drawing, Gallery, Grid, Heading, Text
from m5ds.downstream.report.pictures import find_products
from m5ds.downstream.report.tables import STAGES, cell, label, paper_tables, task_tables
from m5ds.downstream.tasks.linear_probe import ALONE
from m5ds.files import read_lines

TITLES = {
    "classification": "Classification",
    "linear_probe": "Linear probe (classification on frozen features)",
    "clustering": "Clustering",
    "coarse_retrieval": "Coarse retrieval (same category)",
    "instance_retrieval": "Instance retrieval (same product)",
    "robustness": "Robustness",
}
COMPARED: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "classification": ("test", ("accuracy", "macro_accuracy")),
    "linear_probe": (None, ("accuracy",)),
    "clustering": ("k-means", ("nmi", "purity", "ari")),
    "coarse_retrieval": ("standard", ("ap@10", "prec@1", "ndcg@10")),
    "instance_retrieval": ("standard", ("ap@10", "recall@10")),
}
"""Task -> (table, metrics) of the paired comparisons; None: every table but those of one modality."""
NUM_EXAMPLES = 5
"""Queries that are shown of each retrieval result."""


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
            raise ValueError(
                f"{path}: no {RESULTS} in or under it; name folders that tools/evaluate.py or tools/finetune.py wrote"
            )
        for file in files:
            if file.resolve() not in found:
                found[file.resolve()] = Loaded(file.parent, *read_result(file.parent))
    return sorted(found.values(), key=_place)


def _place(loaded: Loaded) -> tuple[int, int, str]:
    task, stage = loaded.result.task, loaded.result.stage
    return list(TITLES).index(task), *_place_of_stage(stage)


def _place_of_stage(stage: str) -> tuple[int, str]:
    """Baselines by name, then the stages in their order."""
    return STAGES.index(stage) if stage in STAGES else -1, stage


def build(loaded: Sequence[Loaded], *, m5product: bool = False, shards: str | None = None) -> Document:
    """The document. `m5product` puts the paper's numbers beside ours; `shards` says where the data lies now."""
    results = [item.result for item in loaded]
    levels = list(dict.fromkeys(map(level_of, results)))
    if len(levels) > 1:
        raise ValueError(
            f"results of category levels {', '.join(map(str, levels))}: their numbers do not compare; make a report of"
            " each level"
        )
    document = Document("Downstream evaluation")
    document.add(*_opening(results))
    document.add(*paper_tables(results, m5product))
    named = [dataclasses.replace(result, stage=label(result, results)) for result in results]
    for task, title in TITLES.items():
        chosen = [result for result in named if result.task == task]
        if chosen:
            document.add(Heading(title), *task_tables(task, chosen))
    document.add(*_over_seeds(results))
    document.add(*_comparisons(results))
    pretrained = list(dict.fromkeys(result.source for result in results if result.stage == "pretrain"))
    document.add(*_drawings(named, pretrained, shards))
    document.add(*_examples(named, shards))
    document.add(Heading("Commands"), Code(_commands(loaded, pretrained)))
    return document


def write_report(document: Document, out: Path) -> tuple[Path, Path]:
    """OUT/report.html and OUT/report.md."""
    out.mkdir(parents=True, exist_ok=True)
    page, text = out / "report.html", out / "report.md"
    page.write_text(document.to_html())
    text.write_text(document.to_markdown())
    return page, text


def _opening(results: Sequence[Result]) -> list[Block]:
    level = level_of(results[0])
    classes = "whole category paths" if level == LEAF else f"category paths cut to {level} name(s)"
    rows: dict[tuple[str, ...], list[str]] = {}
    for result in sorted(results, key=lambda result: _place_of_stage(result.stage)):
        data = f"{result.split} of {result.shards}", result.manifest_hash[:12]
        rows.setdefault((result.stage, result.source, result.fingerprint[:12], *data), []).append(result.task)
    return [
        Text(
            "Numbers are estimates with 95 % bootstrap intervals over products. 'standard' is the textbook protocol,"
            " 'official' the released code's (AP over hits only, k cut to the positives, positives counted outside the"
            f" gallery, the query dropped after the top k). Classes are {classes}."
        ),
        Grid(
            ["stage", "model", "weights", "data", "manifest", "tasks"],
            [[*described, ", ".join(dict.fromkeys(done))] for described, done in rows.items()],
            wraps=True,
        ),
    ]


def _compared(results: Sequence[Result]) -> Iterable[tuple[str, str, tuple[str, ...]]]:
    """(task, table, metrics) of COMPARED, with the tables that the results have."""
    for task, (name, metrics) in COMPARED.items():
        found = dict.fromkeys(table.name for result in results if result.task == task for table in result.tables)
        chosen = [table for table in found if (name or table) == table and not table.endswith(ALONE)]
        yield from ((task, table, metrics) for table in chosen)


def _title(task: str, table: str) -> str:
    return task if COMPARED[task][0] else f"{task}, {table}"


def _over_seeds(results: Sequence[Result]) -> list[Block]:
    """Where a task has several results of one stage (training seeds): mean, spread, and the difference to each other
    stage with as many. Seeds and products are both resampled; scores of clusterings have Student's t over seeds."""
    rows = []
    for task, name, metrics in _compared(results):
        stages: dict[str, list[Table]] = {}
        for result in results:
            if result.task == task and name in [table.name for table in result.tables]:
                stages.setdefault(result.stage, []).append(result.table(name))
        repeated = {stage: tables for stage, tables in stages.items() if len(tables) > 1}
        title = _title(task, name)
        for number, (stage, tables) in enumerate(repeated.items()):
            others = [(s, t) for s, t in list(repeated.items())[:number] if len(t) == len(tables)]
            for metric in (name for name in metrics if all(name in table.metrics for table in tables)):
                rows.append([f"{title}: {stage} ({len(tables)} seeds)", metric, cell(_seeds(tables, metric))])
                for other, baseline in others:
                    if any(metric not in table.metrics for table in baseline):
                        continue  # of another k
                    rows.append([f"{title}: {stage} - {other}", metric, cell(_seeds(tables, metric, baseline))])
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
    for task, table, metrics in _compared(results):
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
                    rows.append(
                        [f"{_title(task, table)}: {result.stage} - {baseline.stage}", metric, cell(difference), verdict]
                    )
    if not rows:
        return []
    return [
        Heading("Paired comparisons"),
        Grid(["difference", "metric", "% points", "excludes zero"], rows, "paired bootstrap over products"),
    ]


def _drawings(results: Sequence[Result], pretrained: Sequence[str], shards: str | None) -> list[Block]:
    blocks: list[Block] = []

    def add(svg: str | None, caption: str, small: bool = False) -> None:
        if svg is not None:
            blocks.append(Drawing(svg, caption, small))

    robust = [result for result in results if result.task == "robustness"]
    for result in robust:
        caption = f"Every modality subset ({result.stage}): mAP@10 of coarse retrieval over the products that have one."
        add(plots.subset_lattice(result), caption)
    add(
        plots.missing_curves(robust),
        "mAP@10 against the missing rate; shaded: 95 % interval. Line styles on the right as on the left.",
    )
    add(plots.noise_bars(robust), "Noise: shuffled pairs and damaged files.")
    for result in robust:
        for name, correlation in result.extras.get("correlation", {}).items():
            title = f"Mean cosine between modalities, {name} states ({result.stage})."
            add(plots.heat_map(correlation["cosine"], correlation["names"], name), title, small=True)
        blocks += _modality_weights(result)
    labelled = [result for result in results if result.task in ("classification", "coarse_retrieval")]
    add(plots.long_tail(labelled, {"classification": "accuracy", "coarse_retrieval": "mAP@10"}), "The long tail.")
    for source in pretrained:
        add(plots.pretraining_curve(_run_records(source)), f"Learning curve of pretraining ({source}).", small=True)
    probes = [result for result in results if result.task == "linear_probe"]
    add(plots.label_curves(probes), "Linear probe: accuracy against the number of labels; shaded: 95 % interval.")
    for result in results:
        if result.task == "classification":
            caption = f"Learning curve of classification ({result.stage})."
            add(plots.learning_curve(result), caption, small=True)
    for result in results:
        if result.task == "clustering":
            method = result.extras.get("projection", {}).get("method", "t-SNE")
            caption = f"{method} of the embeddings ({result.stage}), the most frequent categories in color."
            add(plots.projection(result, _categories(result, shards)), caption, small=True)
    return [Heading("Plots"), *blocks] if blocks else []


def _modality_weights(result: Result) -> list[Block]:
    """The heat map of a model whose losses weigh each other, or one line that says why there is none."""
    found = result.extras.get("harmony")
    if found is None:
        return [Text(f"Modality weights ({result.stage}): not in this result; run its robustness task again.")]
    if found["kind"] == "none":
        return [Text(f"Modality weights ({result.stage}): none, the model's harmony.kind is none: all losses weigh 1.")]
    svg = plots.heat_map(found["weight"], found["names"], f"harmony: {found['kind']}")
    if svg is None:
        return [Text(f"Modality weights ({result.stage}): the split has no product that any of the losses is of.")]
    caption = (
        f"Modality weights ({result.stage}), of {found['weighs']}: off the diagonal of each pair's contrastive loss, on"
        " it of each modality's masked task; mean over the split."
    )
    return [Drawing(svg, caption, small=True)]


def _run_records(source: str) -> list[dict[str, Any]]:
    """metrics.jsonl of the run that a checkpoint lies in, up to it; nothing where it does not lie here any more."""
    tag = Path(source).name.removeprefix("step-")
    if not tag.isdigit():
        return []  # a Hugging Face directory
    try:
        return [record for record in read_lines(_run_of(source) / "metrics.jsonl") if record["step"] <= int(tag)]
    except ValueError:
        return []


def _run_of(source: str) -> Path:
    """RUN of RUN/checkpoints/TAG."""
    return Path(source).parent.parent


def _commands(loaded: Sequence[Loaded], pretrained: Sequence[str]) -> str:
    """What pretrained the models (from their runs' folders, where those still are), then what made each result."""
    made: dict[str, list[str]] = {}
    for source in pretrained:
        for start in _starts(_run_of(source)):
            made.setdefault(launched(start["command"], start["world_size"]), []).append(str(_run_of(source)))
    for item in loaded:
        made.setdefault(item.tree["command"], []).append(str(item.directory))
    return "\n".join(
        "\n".join([*(f"# -> {folder}" for folder in dict.fromkeys(folders)), command])
        for command, folders in made.items()
    )


def _starts(run: Path) -> list[dict[str, Any]]:
    """run.json of a run; nothing where it cannot be read."""
    try:
        return json.loads((run / "run.json").read_text())
    except (OSError, json.JSONDecodeError):
        return []


def _categories(result: Result, shards: str | None) -> Sequence[str]:
    try:
        return CategoryLevel.of(read_manifest(shards or result.shards).categories, level_of(result)).names
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
            searched = (result.settings.get(result.task) or {}).get("gallery_split")
            if searched not in (None, result.split):
                shown |= find_products(shards or result.shards, searched, wanted - set(shown))
        except (ValueError, OSError) as error:
            blocks.append(Text(f"{TITLES[result.task]} ({result.stage}): no pictures, {error}"))
            continue

        def card(name: str, correct: bool | None, shown=shown) -> Card:
            product = shown.get(name)
            return Card("", name, correct) if product is None else Card(product.picture, product.title, correct)

        rows = [
            [card(row["query"], None), *(card(found["id"], found["relevant"]) for found in row["found"])]
            for row in examples[:NUM_EXAMPLES]
        ]
        facts = result.tables[0].facts
        sides = " -> ".join(facts[f"{side}_modalities"] for side in ("query", "gallery"))
        blocks.append(Gallery(rows, f"{TITLES[result.task]} ({result.stage}), {sides}: query, then what was found."))
    return [Heading("Retrieval examples"), *blocks] if blocks else []
