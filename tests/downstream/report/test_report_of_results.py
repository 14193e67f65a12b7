"""What the report makes of results: their order, comparisons, seeds, commands and examples."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from report_cases import IDS, headings, loaded, result, scores, section, table

from m5ds.downstream.measure.bootstrap import Interval, bootstrap_difference, bootstrap_seeds, keys_of, seed_interval
from m5ds.downstream.measure.results import Table, write_result
from m5ds.downstream.report import report
from m5ds.downstream.report.document import Card, Gallery, Grid, Text
from m5ds.downstream.report.report import Loaded, build, load_results
from m5ds.downstream.report.tables import cell


def test_results_come_in_the_papers_order_each_once(tmp_path):
    stages = ["finetune", "zero", "pretrain", "untrained", "baseline"]
    for number, task in enumerate(reversed(report.TITLES)):
        write_result(tmp_path / f"{number}", result(task))
    for number, stage in enumerate(stages):
        write_result(tmp_path / "clusterings" / f"{number}", result("clustering", stage))
    found = [(one.result.task, one.result.stage) for one in load_results([tmp_path, tmp_path / "clusterings"])]
    assert found == [
        ("classification", "pretrain"),
        ("linear_probe", "pretrain"),
        *(("clustering", s) for s in ("baseline", "zero", "untrained", "pretrain", "pretrain", "finetune")),
        ("coarse_retrieval", "pretrain"),
        ("instance_retrieval", "pretrain"),
        ("robustness", "pretrain"),
    ]
    (one,) = load_results([tmp_path / "clusterings" / "0"])
    assert one.directory == tmp_path / "clusterings" / "0" and one.tree["command"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: no results.json in or under it"):
        load_results([tmp_path, tmp_path / "file"])


def test_the_report_opens_with_what_was_measured_on_what():
    document = build(
        loaded(
            result("clustering", "pretrain"),
            result("coarse_retrieval", "pretrain"),
            result("clustering", "pretrain"),
            result("clustering", "untrained", source="runs/u"),
            result("clustering", "tf-idf", source="t", split="validation", manifest_hash="m" * 20, fingerprint="t"),
        )
    )
    text, grid = document.blocks[0], document.blocks[1]
    assert text.text.endswith("Classes are whole category paths.")
    assert [[*row] for row in grid.rows] == [
        ["tf-idf", "t", "t", "validation of shards", "m" * 12, "clustering"],
        ["untrained", "runs/u", "0123456789ab", "test of shards", "fedcba987654", "clustering"],
        [
            *("pretrain", "runs/pretrain/checkpoints/step-00000005", "0123456789ab", "test of shards", "fedcba987654"),
            "clustering, coarse_retrieval",
        ],
    ]
    assert grid.wraps and len(grid.header) == 6
    assert headings(document) == ["Clustering", "Coarse retrieval (same category)", "Commands"]
    cut = build(loaded(result("clustering", settings={"category_level": 2})))
    assert cut.blocks[0].text.endswith("Classes are category paths cut to 2 name(s).")
    with pytest.raises(ValueError, match="results of category levels leaf, 2: their numbers do not compare"):
        build(loaded(result("clustering"), result("clustering", settings={"category_level": 2})))


def retrieval(stage, seed, metrics=("ap_at_10", "prec_at_1", "ndcg_at_10"), ids=IDS, name="standard", **changes):
    values = {metric: scores(10 * seed + i) for i, metric in enumerate(metrics)}
    tables = [table("official", ids, **values), table(name, ids, **values)]
    return result("coarse_retrieval", stage, tables, **changes)


def test_each_stage_is_compared_with_each_earlier_one_over_the_products():
    results = [retrieval(stage, seed) for seed, stage in enumerate(("tf-idf", "untrained", "pretrain"))]
    (grid,) = section(build(loaded(*results)), "Paired comparisons")
    assert [row[0] for row in grid.rows[::3]] == [
        f"coarse_retrieval: {pair}" for pair in ("untrained - tf-idf", "pretrain - tf-idf", "pretrain - untrained")
    ]
    assert [row[1] for row in grid.rows] == ["ap@10", "prec@1", "ndcg@10"] * 3
    expected = bootstrap_difference(scores(20), scores(10), keys_of(IDS))
    assert grid.rows[6][2:] == [cell(expected), "no"]
    better = retrieval("pretrain", 1)
    for one in better.tables:
        one.values = {name: values + 0.5 for name, values in one.values.items()}
    (grid,) = section(build(loaded(retrieval("untrained", 1), better)), "Paired comparisons")
    assert [row[2:] for row in grid.rows] == [["50.00 [50.00, 50.00]", "yes"]] * 3


def test_tasks_with_tables_and_metrics_of_one_name_are_not_compared_with_each_other():
    results = [retrieval("untrained", 1), retrieval("pretrain", 2)]
    others = [dataclasses.replace(one, task="instance_retrieval") for one in results]
    (grid,) = section(build(loaded(*results, *others)), "Paired comparisons")
    assert [row[:2] for row in grid.rows] == [
        *(["coarse_retrieval: pretrain - untrained", metric] for metric in ("ap@10", "prec@1", "ndcg@10")),
        ["instance_retrieval: pretrain - untrained", "ap@10"],
    ]


def test_what_cannot_be_paired_is_left_out_and_stops_nothing():
    results = [
        retrieval("tf-idf", 1, split="validation"),
        retrieval("untrained", 2, metrics=("ap_at_10",)),
        retrieval("pretrain", 3),
    ]
    (grid,) = section(build(loaded(*results)), "Paired comparisons")
    assert [row[:2] for row in grid.rows] == [["coarse_retrieval: pretrain - untrained", "ap@10"]]
    assert "Paired comparisons" not in headings(build(loaded(*results[:2])))
    other = retrieval("pretrain", 3, name="another")
    assert "Paired comparisons" not in headings(build(loaded(results[1], other)))


def test_a_probes_tables_are_compared_each_but_those_of_one_modality(monkeypatch):
    monkeypatch.setattr(report.plots, "label_curves", lambda probes: None)

    def probe(stage, seed):
        names = ("all labels", "10 % of the labels", "text only")
        facts = [table(name, accuracy=scores(seed)) for name in names]
        return result("linear_probe", stage, facts)

    (grid,) = section(build(loaded(probe("untrained", 1), probe("pretrain", 2))), "Paired comparisons")
    assert [row[0] for row in grid.rows] == [
        "linear_probe, all labels: pretrain - untrained",
        "linear_probe, 10 % of the labels: pretrain - untrained",
    ]


def test_several_results_of_a_stage_are_training_seeds():
    pretrained = [retrieval("pretrain", seed) for seed in (1, 2)]
    untrained = [retrieval("untrained", seed, ids=IDS[::-1]) for seed in (3, 4)]
    document = build(loaded(*untrained, *pretrained, retrieval("tf-idf", 5)))
    (grid,) = section(document, "Over training seeds")
    assert [row[:2] for row in grid.rows[:3]] == [
        ["coarse_retrieval: untrained (2 seeds)", metric] for metric in ("ap@10", "prec@1", "ndcg@10")
    ]
    assert [row[:2] for row in grid.rows[3:5]] == [
        ["coarse_retrieval: pretrain (2 seeds)", "ap@10"],
        ["coarse_retrieval: pretrain - untrained", "ap@10"],
    ]
    ours = np.stack([scores(10), scores(20)])
    theirs = np.stack([scores(30), scores(40)])[:, ::-1]
    assert grid.rows[3][2] == cell(bootstrap_seeds(ours, keys_of(IDS)))
    assert grid.rows[4][2] == cell(bootstrap_seeds(ours - theirs, keys_of(IDS)))
    assert len(grid.rows) == 9
    # Stages with several results are not paired one by one.
    assert "Paired comparisons" not in headings(document)


def test_seeds_are_compared_over_the_products_that_all_of_them_scored():
    few = [retrieval("pretrain", 1, metrics=("ap_at_10",)) for _ in range(2)]
    few[1].tables[1].ids = ("x", *IDS[1:])
    (grid,) = section(build(loaded(*few)), "Over training seeds")
    values = np.stack([scores(10)[1:]] * 2)
    assert grid.rows[0][2] == cell(bootstrap_seeds(values, keys_of(IDS[1:])))


def test_stages_with_unequal_numbers_of_seeds_or_other_metrics_are_not_paired():
    three = [retrieval("untrained", seed) for seed in (1, 2, 3)]
    two = [retrieval("pretrain", seed) for seed in (4, 5)]
    (grid,) = section(build(loaded(*three, *two)), "Over training seeds")
    assert [row[0] for row in grid.rows[::3]] == [
        "coarse_retrieval: untrained (3 seeds)",
        "coarse_retrieval: pretrain (2 seeds)",
    ]
    lacking = [retrieval("pretrain", seed, metrics=("ap_at_10", "ndcg_at_10")) for seed in (4, 5)]
    first = [retrieval("untrained", seed, metrics=("ap_at_10", "prec_at_1")) for seed in (1, 2)]
    (grid,) = section(build(loaded(*first, *lacking)), "Over training seeds")
    assert [(row[0].partition(": ")[2], row[1]) for row in grid.rows] == [
        ("untrained (2 seeds)", "ap@10"),
        ("untrained (2 seeds)", "prec@1"),
        ("pretrain (2 seeds)", "ap@10"),
        ("pretrain - untrained", "ap@10"),
        ("pretrain (2 seeds)", "ndcg@10"),
    ]


def test_scores_that_are_no_means_have_students_interval_over_seeds():
    def clustering(stage, nmi):
        metrics = {"nmi": Interval(estimate=nmi, low=0, high=1)}
        return result("clustering", stage, [Table(name="k-means", metrics=metrics, ids=IDS)])

    results = [clustering("untrained", x) for x in (0.1, 0.2)] + [clustering("pretrain", x) for x in (0.5, 0.9)]
    (grid,) = section(build(loaded(*results)), "Over training seeds")
    assert [row[2] for row in grid.rows] == [
        cell(seed_interval(values)) for values in ([0.1, 0.2], [0.5, 0.9], [0.4, 0.7])
    ]


def test_every_metric_that_is_compared_is_one_that_its_task_has():
    assert report.COMPARED == {
        "classification": ("test", ("accuracy", "macro_accuracy")),
        "linear_probe": (None, ("accuracy",)),
        "clustering": ("k-means", ("nmi", "purity", "ari")),
        "coarse_retrieval": ("standard", ("ap@10", "prec@1", "ndcg@10")),
        "instance_retrieval": ("standard", ("ap@10", "recall@10")),
    }


def test_commands_are_listed_with_what_they_made_each_once(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    starts = [
        {"command": "m5ds/pretrain.py --local_rank=0 a=1", "world_size": 2},
        {"command": "m5ds/pretrain.py a=1", "world_size": 2},
        {"command": "m5ds/pretrain.py b=2", "world_size": 1},
    ]
    (run / "run.json").write_text(json.dumps(starts))
    sources = [f"{run}/checkpoints/step-00000005", f"{run}/checkpoints/step-00000009", str(tmp_path / "x/y/step-3")]
    loads = [
        Loaded(tmp_path / name, result("clustering"), {"command": command})
        for name, command in (("a", "one"), ("b", "two"), ("c", "one"))
    ]
    assert report._commands(loads, sources).splitlines() == [
        f"# -> {run}",
        "deepspeed --num_gpus 2 m5ds/pretrain.py a=1",
        f"# -> {run}",
        "python m5ds/pretrain.py b=2",
        f"# -> {tmp_path / 'a'}",
        f"# -> {tmp_path / 'c'}",
        "one",
        f"# -> {tmp_path / 'b'}",
        "two",
    ]
    (run / "run.json").write_text("[")
    assert report._commands([], sources) == ""


def test_the_curve_of_pretraining_ends_at_the_checkpoint(tmp_path):
    records = [{"step": step, "kind": "train"} for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = report._run_records(str(tmp_path / "checkpoints" / "step-00000005"))
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5]
    assert report._run_records(str(tmp_path / "checkpoints" / "model")) == []
    assert report._run_records("no/such/checkpoints/step-00000005") == []
    (tmp_path / "metrics.jsonl").write_text("{\n{}\n")
    assert report._run_records(str(tmp_path / "checkpoints" / "step-00000005")) == []


@pytest.fixture
def shown(monkeypatch):
    """The calls for products; `test` has a to c, `train` d."""
    calls = []

    def find(shards, split, wanted):
        calls.append((shards, split, sorted(wanted)))
        names = {"test": "abc", "train": "bd"}[split]
        return {n: SimpleNamespace(title=f"{split} {n}", picture=f"data:{n}") for n in names if n in wanted}

    monkeypatch.setattr(report, "find_products", find)
    return calls


def with_examples(count=1, **changes):
    row = {"query": "a", "found": [{"id": "d", "relevant": True}, {"id": "e", "relevant": False}]}
    return result(
        "coarse_retrieval",
        tables=[table("standard", ap_at_10=scores(1))],
        extras={"examples": [row] * count},
        **changes,
    )


def test_examples_show_the_query_and_what_was_found_from_the_split_that_was_searched(shown):
    settings = {"coarse_retrieval": {"gallery_split": "train"}}
    (gallery,) = section(build(loaded(with_examples(7, settings=settings))), "Retrieval examples")
    assert isinstance(gallery, Gallery) and len(gallery.rows) == 5
    assert gallery.rows[0] == [
        Card("data:a", "test a", None),
        Card("data:d", "train d", True),
        Card("", "e", False),
    ]
    assert gallery.caption == "Coarse retrieval (same category) (pretrain), image -> text: query, then what was found."
    assert shown == [("shards", "test", ["a", "d", "e"]), ("shards", "train", ["d", "e"])]


@pytest.mark.parametrize("searched", [None, "test"])
def test_products_of_the_tested_split_are_looked_up_once(searched, shown):
    settings = {"coarse_retrieval": {"gallery_split": searched}} if searched else {"coarse_retrieval": None}
    build(loaded(with_examples(settings=settings)), shards="moved")
    assert shown == [("moved", "test", ["a", "d", "e"])]


def test_results_without_examples_or_pictures_stop_no_others(monkeypatch, shown):
    assert "Retrieval examples" not in headings(
        build(loaded(result("coarse_retrieval", tables=[table("standard", ap_at_10=scores(1))])))
    )
    empty = result("coarse_retrieval", "untrained", [table("standard", ap_at_10=scores(1))], extras={"examples": None})
    assert len(section(build(loaded(empty, with_examples())), "Retrieval examples")) == 1

    def gone(shards, split, wanted):
        raise OSError("gone")

    monkeypatch.setattr(report, "find_products", gone)
    blocks = section(build(loaded(with_examples(), with_examples())), "Retrieval examples")
    assert blocks[0] == Text("Coarse retrieval (same category) (pretrain, step-00000005): no pictures, gone")
    assert len(blocks) == 2


def test_categories_of_a_projection_are_those_of_the_level(monkeypatch):
    manifest = SimpleNamespace(categories=("a / x", "a / y", "b"))
    opened = []
    monkeypatch.setattr(report, "read_manifest", lambda shards: opened.append(shards) or manifest)
    assert report._categories(result("clustering"), None) == ("a / x", "a / y", "b")
    assert report._categories(result("clustering", settings={"category_level": 1}), "moved") == ("a", "b")
    assert opened == ["shards", "moved"]
    assert report._categories(result("clustering", settings={"category_level": 9}), None) == ()


def test_both_files_are_written_into_a_new_folder(tmp_path):
    document = report.Document("t")
    page, text = report.write_report(document, tmp_path / "a" / "b")
    assert (page.read_text(), text.read_text()) == (document.to_html(), document.to_markdown())
    assert (page.name, text.name) == ("report.html", "report.md")
    report.write_report(document, tmp_path / "a" / "b")


def test_grids_of_comparisons_name_their_columns():
    document = build(loaded(retrieval("untrained", 1), retrieval("pretrain", 2)))
    (grid,) = section(document, "Paired comparisons")
    assert isinstance(grid, Grid) and [*grid.header] == ["difference", "metric", "% points", "excludes zero"]
