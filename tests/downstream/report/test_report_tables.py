"""The report's tables, cell by cell, from made-up results."""

import pytest

from m5ds.downstream.measure.bootstrap import Interval
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.report import paper_numbers
from m5ds.downstream.report.document import Grid, Heading, Text
from m5ds.downstream.report.tables import cell, label, paper_tables, task_tables


def result(task, stage="pretrain", tables=(), source="runs/a", fingerprint="f", settings=None, **extras):
    return Result(
        task=task,
        stage=stage,
        source=source,
        fingerprint=fingerprint,
        shards="s",
        manifest_hash="m",
        split="test",
        settings=settings or {},
        tables=list(tables),
        extras=extras,
    )


def value(estimate, spread=0.1):
    return Interval(estimate=estimate, low=estimate - spread, high=estimate + spread)


def table(name, facts=None, groups=None, **metrics):
    named = {metric.replace("_at_", "@"): value(estimate) for metric, estimate in metrics.items()}
    return Table(name=name, metrics=named, facts=facts or {}, groups=groups or {})


def grids(blocks):
    return [([*block.header], [[*row] for row in block.rows], block.caption) for block in blocks if type(block) is Grid]


def texts(blocks):
    return [block.text for block in blocks if isinstance(block, Text)]


def test_a_cell_is_percent_with_its_interval():
    assert cell(Interval(estimate=0.5, low=0.25, high=0.755)) == "50.00 [25.00, 75.50]"
    assert cell(None) == ""


def test_rankings_have_a_row_for_each_k_and_stage():
    one = table("standard", ap_at_1=0.1, prec_at_1=0.2, ap_at_5=0.3, prec_at_5=0.4)
    other = table("standard", ap_at_1=0.5, ap_at_10=0.6)
    blocks = task_tables("x", [result("x", "untrained", [one]), result("x", "pretrain", [other])])
    assert grids(blocks) == [
        (
            ["stage", "k", "ap@k", "prec@k"],
            [
                ["untrained", "1", "10.00 [0.00, 20.00]", "20.00 [10.00, 30.00]"],
                ["pretrain", "1", "50.00 [40.00, 60.00]", ""],
                ["untrained", "5", "30.00 [20.00, 40.00]", "40.00 [30.00, 50.00]"],
                ["pretrain", "5", "", ""],
                ["untrained", "10", "", ""],
                ["pretrain", "10", "60.00 [50.00, 70.00]", ""],
            ],
            "standard, %: ",
        )
    ]


def test_other_metrics_are_columns_and_each_table_name_has_a_grid():
    first = result("x", "untrained", [table("a", nmi=0.5), table("b", nmi=0.25)])
    second = result("x", "pretrain", [table("a", nmi=0.75, ari=0.5)])
    (a, b) = grids(task_tables("x", [first, second]))
    assert a[0] == ["stage", "nmi", "ari"]
    assert a[1] == [
        ["untrained", "50.00 [40.00, 60.00]", ""],
        ["pretrain", "75.00 [65.00, 85.00]", "50.00 [40.00, 60.00]"],
    ]
    assert b[1] == [["untrained", "25.00 [15.00, 35.00]"]] and b[2] == "b, %: "
    mixed = grids(task_tables("x", [result("x", "s", [table("a", nmi=0.5, ap_at_1=0.5)])]))
    assert mixed[0][0] == ["stage", "nmi", "ap@1"]


def test_a_probes_strength_is_a_column_where_any_row_has_one():
    first = result("x", "untrained", [table("a", {"inverse_regularization": 0.1, "labels": 4}, accuracy=0.5)])
    second = result("x", "tf-idf", [table("a", {"labels": 4}, accuracy=0.5)])
    ((header, rows, caption),) = grids(task_tables("x", [first, second]))
    assert header == ["stage", "accuracy", "inverse regularization"]
    assert [row[-1] for row in rows] == ["0.1", ""]
    assert caption == "a, %: labels 4"


def test_the_caption_holds_the_facts_that_all_rows_share():
    facts = {
        "protocol": "standard",
        "scored_queries": 9,
        "gallery": 5,
        "seeds": [],
        "kind": "",
        "unseen_category_names": ["x"],
        "left_out": 0,
    }
    from m5ds.downstream.tasks.labels import UNSEEN_NAMES

    facts[UNSEEN_NAMES] = facts.pop("unseen_category_names")
    others = facts | {"gallery": 6, UNSEEN_NAMES: []}
    blocks = task_tables(
        "x",
        [
            result("x", "a", [table("standard", facts | {UNSEEN_NAMES: []}, nmi=0.5)]),
            result("x", "b", [table("standard", others, nmi=0.5)]),
        ],
    )
    assert grids(blocks)[0][2] == "standard, %: scored queries 9, left out 0"
    lacking = task_tables(
        "x", [result("x", "a", [table("t", {"draws": 5}, nmi=0.5)]), result("x", "b", [table("t", nmi=0.5)])]
    )
    assert grids(lacking)[0][2] == "t, %: "


def test_unseen_categories_and_what_was_not_scored_are_lines():
    from m5ds.downstream.tasks.labels import UNSEEN_NAMES

    facts = {UNSEEN_NAMES: ["toys"], "tested_categories": 3, "products_of_unseen_categories": 2, "products": 9}
    blocks = task_tables(
        "x",
        [result("x", "a", [table("t", facts, nmi=0.5), table("t2", nmi=0.5)], not_scored={"5 %": "too few", "u": "v"})],
    )
    lines = texts(blocks)
    assert lines[0].startswith("a: 1 of 3 tested categories are unseen") and lines[0].endswith(".")
    assert lines[1:] == ["5 % (a): not scored, too few", "u (a): not scored, v"]


def test_frequency_groups_stand_in_their_order_with_their_sizes():
    one = table(
        "t", groups={"tail": {"estimate": 0.5, "num_products": 4}, "head": {"estimate": 0.25, "num_products": 9}}, nmi=1
    )
    two = table("t", groups={"unseen": {"estimate": 0.0, "num_products": 1}}, nmi=1)
    found = grids(task_tables("x", [result("x", "a", [one]), result("x", "b", [two])]))[1]
    assert found[0] == ["stage", "head", "tail", "unseen"]
    assert found[1] == [["a", "25.00 (9)", "50.00 (4)", ""], ["b", "", "", "0.00 (1)"]]
    assert found[2] == "by training frequency of the category, % (products)"
    assert len(grids(task_tables("x", [result("x", "a", [table("t", nmi=1)])]))) == 1


def condition(policy, name, kind, queries, **metrics):
    return table(f"{policy}: {name}", {"kind": kind, "policy": policy, "scored_queries": queries}, **metrics)


def test_robustness_has_a_grid_for_each_kind_with_the_policies_side_by_side():
    tables = [
        condition("drop", "image", "subset", 7, ap_at_10=0.5, prec_at_1=0.25),
        condition("zeros", "image", "subset", 7, ap_at_10=0.125),
        condition("drop", "text", "subset", 6, ap_at_10=0.75),
        condition("zeros", "missing 0.5", "missing", 5, accuracy=0.5),
    ]
    blocks = task_tables("robustness", [result("robustness", "p", tables, not_scored={"drop: audio": "none"})])
    subset, missing = grids(blocks)
    assert subset[0] == ["condition", "ap@10 drop", "ap@10 zeros", "prec@1 drop", "prec@1 zeros", "queries"]
    assert subset[1] == [
        ["image", "50.00 [40.00, 60.00]", "12.50 [2.50, 22.50]", "25.00 [15.00, 35.00]", "", "7"],
        ["text", "75.00 [65.00, 85.00]", "", "", "", "6"],
    ]
    assert subset[2].startswith("p, policy drop | zeros, %: queries and gallery show the same")
    assert missing[0] == ["condition", "accuracy drop", "accuracy zeros", "queries"]
    assert missing[1] == [["missing 0.5", "", "50.00 [40.00, 60.00]", "5"]]
    assert texts(blocks) == ["drop: audio (p): not scored, none"]
    (alone,) = grids(task_tables("robustness", [result("robustness", "p", tables[:1])]))
    assert alone[0] == ["condition", "ap@10", "prec@1", "queries"]


@pytest.mark.parametrize("kind", ["subset", "subset_to_all", "all_to_subset", "missing", "shuffled", "damaged"])
def test_every_kind_of_condition_is_reported(kind):
    tables = [condition("drop", "x", kind, 1, ap_at_10=0.5)]
    assert len(grids(task_tables("robustness", [result("robustness", "p", tables)]))) == 1


def test_a_stage_is_named_after_its_configuration_where_its_task_has_it_twice():
    one = result("a", "pretrain", settings={"name": "seed 1"})
    same = result("a", "pretrain", source="runs/b")
    others = [result("b", "pretrain"), result("a", "untrained")]
    assert label(one, [one, *others]) == "pretrain"
    assert label(one, [one, same]) == "pretrain, seed 1"
    assert label(same, [one, same]) == "pretrain, b"


def official(stage, source="runs/a", fingerprint="f"):
    metrics = {name: 0.01 * n for n, name in enumerate(("ap_at_1", "ap_at_5", "prec_at_1"), 1)}
    tables = [table("standard", ap_at_1=0.9), table("official", **metrics)]
    return result("coarse_retrieval", stage, tables, source, fingerprint)


def classified(stage, accuracy, source="x", fingerprint="x", **extras):
    return result("classification", stage, [table("test", accuracy=accuracy)], source, fingerprint, **extras)


def test_table_3_has_the_official_numbers_and_each_rows_own_accuracy():
    results = [
        official("untrained", "runs/u"),
        official("pretrain", "runs/a", "same"),
        official("finetune", "runs/f", "tuned"),
        official("tf-idf", "tf-idf", "tf-idf"),
        result("coarse_retrieval", "lonely", [table("standard", ap_at_1=0.9)]),
        classified("finetune", 0.5, "runs/f", "tuned", pretrained="runs/a"),
        classified("untrained", 0.25, "runs/v", "same", pretrained="runs/u"),
        classified("tf-idf", 0.125, "tf-idf", "tf-idf"),
    ]
    heading, grid = paper_tables(results, m5product=False)
    assert heading == Heading("In the shape of the paper's Table 3")
    assert [*grid.header] == ["", *paper_numbers.COLUMNS]
    numbers = ["1.00", "2.00", "", "3.00", "", ""]
    assert [[*row] for row in grid.rows] == [
        ["ours, untrained", "25.00", *numbers],
        ["ours, pretrain", "50.00", *numbers],
        ["ours, finetune", "50.00", *numbers],
        ["ours, tf-idf", "12.50", *numbers],
    ]


def test_a_row_without_a_classifier_has_no_accuracy():
    results = [official("pretrain"), classified("finetune", 0.5, pretrained="runs/another")]
    assert paper_tables(results, m5product=False)[1].rows[0][1] == ""
    assert paper_tables(results[1:], m5product=False) == []


def test_the_papers_rows_follow_ours_on_its_data_only():
    clusters = result("clustering", tables=[table("k-means", nmi=0.5, purity=0.25, ari=0.1)])
    blocks = paper_tables([official("pretrain"), clusters], m5product=True)
    assert [block.text for block in blocks[::2]] == [f"In the shape of the paper's Table {n}" for n in (3, 5)]
    table_3, table_5 = blocks[1], blocks[3]
    assert len(table_3.rows) == 1 + 12
    assert [*table_3.rows[1]] == [
        *("paper, pretrain, subset, text", "77.42", "47.70", "53.63", "51.59", "47.70", "30.96", "24.15")
    ]
    assert [*table_5.header] == ["", "NMI", "purity"] and len(table_5.rows) == 1 + 4
    assert [*table_5.rows[0]] == ["ours, pretrain", "50.00", "25.00"]
    assert [*table_5.rows[1]] == ["paper, image + text, SCALE, subset", "84.23", "75.81"]
    assert len(paper_tables([official("pretrain"), clusters], m5product=False)) == 2
    assert paper_tables([], m5product=True) == []
