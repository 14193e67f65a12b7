"""The report's tables: one a task and protocol, the paper's shapes, and robustness with the policies side by side."""

from collections.abc import Sequence
from pathlib import Path

from m5ds.downstream.measure.bootstrap import Interval
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.report import paper_numbers
from m5ds.downstream.report.document import Block, Grid, Heading, Text
from m5ds.downstream.tasks.labels import UNSEEN_NAMES, unseen_line

CHOSEN = "inverse_regularization"
"""A fact that each result of a linear probe chooses for itself: a column."""
STAGES = ("untrained", "pretrain", "finetune")
"""The paper's columns and what they are held against; other stages are baselines' names."""


def cell(value: Interval | None) -> str:
    """Percent with its interval; nothing for None."""
    return "" if value is None else f"{100 * value.estimate:.2f} [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def label(result: Result, results: Sequence[Result]) -> str:
    """The stage, with the configuration's name where its task has several results of that stage (training seeds)."""
    same = [other for other in results if (other.task, other.stage) == (result.task, result.stage)]
    name = result.settings.get("name", Path(result.source).name)
    return result.stage if len(same) == 1 else f"{result.stage}, {name}"


def paper_tables(results: Sequence[Result], m5product: bool) -> list[Block]:
    """Table 3 (accuracy, mAP and Prec of the official protocol) and, on the paper's data, Table 5 (clustering)."""
    rows = []
    for result in results:
        if result.task != "coarse_retrieval" or "official" not in [table.name for table in result.tables]:
            continue
        found = result.table("official").metrics
        cells = [_accuracy(result, results), *(found.get(name) for name in paper_numbers.COLUMNS[1:])]
        rows.append(
            [f"ours, {label(result, results)}", *("" if c is None else f"{100 * c.estimate:.2f}" for c in cells)]
        )
    blocks: list[Block] = []
    if rows:
        if m5product:
            for stage, table in paper_numbers.ADDING_MODALITIES.items():
                for name, values in table.items():
                    rows.append([f"paper, {stage}, {name}", *("" if v is None else f"{v:.2f}" for v in values)])
        caption = "accuracy after finetuning from these weights; coarse retrieval under the official protocol, %"
        blocks += [Heading("In the shape of the paper's Table 3"), Grid(["", *paper_numbers.COLUMNS], rows, caption)]
    clusterings = [result for result in results if result.task == "clustering"]
    if m5product and clusterings:
        rows = [
            [
                f"ours, {label(r, results)}",
                *(f"{100 * r.tables[0].metrics[name].estimate:.2f}" for name in ("nmi", "purity")),
            ]
            for r in clusterings
        ]
        for name, numbers in paper_numbers.CLUSTERING.items():
            rows.append([f"paper, {name}", *(f"{number:.2f}" for number in numbers)])
        blocks += [Heading("In the shape of the paper's Table 5"), Grid(["", "NMI", "purity"], rows, "clustering, %")]
    return blocks


def _accuracy(result: Result, results: Sequence[Result]) -> Interval | None:
    """The test accuracy that belongs to a row of Table 3: of the classifier whose features these are, of the one
    finetuned from these weights, or of the same baseline."""
    for other in results:
        if other.task == "classification" and (
            other.fingerprint == result.fingerprint
            if result.stage == "finetune"
            else other.extras.get("pretrained") == result.source
            if result.stage in STAGES
            else other.stage == result.stage
        ):
            return other.table("test").metrics["accuracy"]
    return None


def task_tables(task: str, results: Sequence[Result]) -> list[Block]:
    """One grid a table name (protocol), one row a stage; rankings have a row for each k too."""
    if task == "robustness":
        return [block for result in results for block in _robustness_tables(result)]
    blocks: list[Block] = []
    for name in dict.fromkeys(table.name for result in results for table in result.tables):
        pairs = [(r, t) for r in results for t in r.tables if t.name == name]
        metrics = list(dict.fromkeys(metric for _, table in pairs for metric in table.metrics))
        caption = f"{name}, %: {_facts([table for _, table in pairs])}"
        if all("@" in metric for metric in metrics):
            columns = list(dict.fromkeys(metric.partition("@")[0] for metric in metrics))
            rows = [
                [result.stage, k, *(cell(table.metrics.get(f"{column}@{k}")) for column in columns)]
                for k in dict.fromkeys(metric.partition("@")[2] for metric in metrics)
                for result, table in pairs
            ]
            blocks.append(Grid(["stage", "k", *(f"{column}@k" for column in columns)], rows, caption))
        else:
            rows = [[result.stage, *(cell(table.metrics.get(m)) for m in metrics)] for result, table in pairs]
            header = ["stage", *metrics]
            if any(CHOSEN in table.facts for _, table in pairs):
                header.append(CHOSEN.replace("_", " "))
                rows = [[*row, f"{t.facts.get(CHOSEN, '')}"] for row, (_, t) in zip(rows, pairs, strict=True)]
            blocks.append(Grid(header, rows, caption))
        blocks += [Text(f"{r.stage}: {line}.") for r, table in pairs if (line := unseen_line(table.facts))]
        blocks += _group_grid(pairs)
    return [*blocks, *(block for result in results for block in _not_scored(result))]


def _not_scored(result: Result) -> list[Block]:
    found = result.extras.get("not_scored", {})
    return [Text(f"{name} ({result.stage}): not scored, {reason}") for name, reason in found.items()]


def _facts(tables: Sequence[Table]) -> str:
    """What is true of all rows of a grid."""
    first = tables[0]
    shown = {
        name: value
        for name, value in first.facts.items()
        if name != CHOSEN
        and name != UNSEEN_NAMES
        and value not in ([], "", first.name)
        and all(table.facts.get(name) == value for table in tables)
    }
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


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


_KINDS = {
    "subset": "queries and gallery show the same modalities; products that have none of them do not ask",
    "subset_to_all": "queries show some modalities, the gallery all",
    "all_to_subset": "queries show all modalities, the gallery some",
    "missing": "missing rate; a query that lost everything counts as a failure",
    "shuffled": "shuffled pairs: a share of products with another product's modalities",
    "damaged": "damaged media: a share of the files is cut to its first third",
}
"""Kind of a condition -> caption."""


def _robustness_tables(result: Result) -> list[Block]:
    """A grid for each kind of condition, a row a condition, the policies for absent modalities side by side."""
    blocks: list[Block] = []
    policies = list(dict.fromkeys(table.facts["policy"] for table in result.tables))
    for kind, caption in _KINDS.items():
        tables = {
            (table.name.removeprefix(f"{table.facts['policy']}: "), table.facts["policy"]): table
            for table in result.tables
            if table.facts["kind"] == kind
        }
        if not tables:
            continue
        found = {metric for table in tables.values() for metric in table.metrics}
        metrics = [metric for metric in ("ap@10", "prec@1", "accuracy") if metric in found]
        header = ["condition"]
        header += [f"{metric} {policy}".strip() for metric in metrics for policy in _named(policies)]
        rows = []
        for condition in dict.fromkeys(name for name, _ in tables):
            same = {policy: tables[condition, policy] for policy in policies if (condition, policy) in tables}
            cells = [cell(same[p].metrics.get(m)) if p in same else "" for m in metrics for p in policies]
            queries = next(iter(same.values())).facts["scored_queries"]
            rows.append([condition, *cells, str(queries)])
        blocks.append(Grid([*header, "queries"], rows, f"{result.stage}, policy {' | '.join(policies)}, %: {caption}"))
    return [*blocks, *_not_scored(result)]


def _named(policies: Sequence[str]) -> Sequence[str]:
    return policies if len(policies) > 1 else [""]
