"""What a task leaves behind: it comes back whole, and two results are compared product by product."""

import json
import sys

import numpy as np
import pytest

from m5ds.downstream.measure import results
from m5ds.downstream.measure.bootstrap import Interval, bootstrap_difference, bootstrap_statistic, keys_of
from m5ds.downstream.measure.results import Result, Table, compare, launched, level_of, read_result, write_result


def result(tables, **changes):
    described = {
        "task": "coarse_retrieval",
        "stage": "pretrain",
        "source": "runs/a",
        "fingerprint": "f",
        "shards": "shards",
        "manifest_hash": "m",
        "split": "test",
        "settings": {"name": "a"},
        "extras": {"examples": [1, None, "ü"]},
    }
    return Result(tables=tables, **(described | changes))


def table(name="standard", ids=("a", "b", "c"), **values):
    metrics = {"ap@10": Interval(estimate=0.5, low=0.25, high=0.75, confidence=0.9)}
    columns = {metric: np.array(column, dtype=np.float64) for metric, column in values.items()}
    return Table(
        name=name,
        metrics=metrics,
        facts={"queries": 3},
        groups={"head": {"estimate": 0.1}},
        ids=tuple(ids),
        values=columns,
    )


def test_everything_comes_back_as_it_was_written(tmp_path, monkeypatch):
    """Neighbouring tables may share names of metrics, and neighbouring metrics their values."""
    monkeypatch.setattr(sys, "argv", ["tools/finetune.py", "all", "name=a b"])
    written = result(
        [
            table("one", **{"ap@10": [0.1, 0.2, 1 / 3], "prec@1": [0, 1, 0]}),
            table("two", ("d", "e"), **{"prec@1": [1, 0]}),
            table("three", ()),
        ]
    )
    write_result(tmp_path / "new" / "folder", written)
    found, tree = read_result(tmp_path / "new" / "folder")
    for name in ("task", "stage", "source", "fingerprint", "shards", "manifest_hash", "split", "settings", "extras"):
        assert getattr(found, name) == getattr(written, name), name
    assert [t.name for t in found.tables] == ["one", "two", "three"]
    for ours, theirs in zip(found.tables, written.tables, strict=True):
        assert (ours.ids, ours.metrics, ours.facts, ours.groups) == (
            theirs.ids,
            theirs.metrics,
            theirs.facts,
            theirs.groups,
        )
        assert list(ours.values) == list(theirs.values)
        for metric, values in theirs.values.items():
            np.testing.assert_array_equal(ours.values[metric], values)
    assert tree["command"] == "python tools/finetune.py all 'name=a b'"
    text = (tmp_path / "new" / "folder" / "results.json").read_text()
    assert "ü" in text and text.startswith('{\n "command": "python ') and text.endswith("\n}\n")
    write_result(tmp_path / "new" / "folder", written)  # again, over the old one


def test_a_single_value_is_read_back(tmp_path):
    write_result(tmp_path, result([table("one", ("a",), x=[2.5])]))
    found = read_result(str(tmp_path))[0].table("one")
    assert (found.ids, found.values["x"].tolist()) == (("a",), [2.5])


def test_a_damaged_result_names_the_file(tmp_path):
    write_result(tmp_path, result([table()]))
    (tmp_path / "values.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"results.json: not a result of tools/finetune.py"):
        read_result(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json: not a result of tools/finetune.py"):
        read_result(tmp_path)


def test_commands_start_with_what_launched_them():
    assert launched("tools/finetune.py --local_rank=3 all", 4) == "deepspeed --num_gpus 4 tools/finetune.py all"
    assert launched("tools/finetune.py --local_rank=0 all", 1) == "python tools/finetune.py all"


def test_the_level_of_older_results_is_the_leaf():
    assert level_of(result([], settings={})) == "leaf"
    assert level_of(result([], settings={"category_level": 2})) == 2


def test_the_difference_is_paired_by_product_over_those_that_both_scored():
    ours = result([table(ids="abcd", x=[1.0, 0.5, 0.25, 9.0])])
    theirs = result([table(ids="cbea", x=[0.0, 1.0, 7.0, 0.25])])
    options = {"num_replicates": 50, "seed": 3}
    expected = bootstrap_difference(
        np.array([1.0, 0.5, 0.25]), np.array([0.25, 1.0, 0.0]), keys_of(["a", "b", "c"]), **options
    )
    assert compare(ours, theirs, "standard", "x", **options) == expected
    assert expected.estimate == pytest.approx((0.75 - 0.5 + 0.25) / 3)


@pytest.mark.parametrize("metric", ["nmi", "purity", "ari", "macro_accuracy"])
def test_a_score_of_a_whole_split_is_computed_anew_in_each_replicate_and_averaged_over_its_columns(metric):
    random = np.random.default_rng(0)
    prefix, score = results.STATISTICS[metric]
    label_N = random.integers(0, 3, 12)
    columns = [np.where(random.random(12) < 0.6, label_N, random.integers(0, 3, 12)) for _ in range(3)]
    separator = "" if prefix.endswith("/") else "/"
    names = [f"{prefix}{separator}{number}" for number in range(3)]
    ids = [f"p{i}" for i in range(12)]
    ours = result([table(ids=ids, label=label_N, **dict(zip(names[:2], columns[:2], strict=True)))])
    theirs = result([table(ids=ids, label=label_N, **{names[2]: columns[2], "other": columns[0]})])

    def difference(rows):
        first = np.mean([score(label_N[rows], column[rows]) for column in columns[:2]])
        return float(first - score(label_N[rows], columns[2][rows]))

    options = {"num_replicates": 20, "seed": 1}
    expected = bootstrap_statistic(difference, keys_of(ids), **options)
    found = compare(ours, theirs, "standard", metric, **options)
    assert (found.estimate, found.low, found.high) == pytest.approx((expected.estimate, expected.low, expected.high))


def test_results_that_do_not_belong_together_are_refused():
    two = [table(ids="ab", x=[1.0, 2.0])]
    ours = result(two)
    assert compare(ours, result(two), "standard", "x", num_replicates=20).estimate == 0.0
    refused = {
        "different data or splits": result(two, split="validation"),
        "data or splits": result(two, manifest_hash="n"),
        "different category levels": result(two, settings={"category_level": 1}),
        "fewer than 2 products": result([table(ids="az", x=[1.0, 2.0])]),
        "has no value for each product": result([table(ids="ab", y=[1.0, 2.0])]),
        "no table 'standard'; there are official": result([table("official", ids="ab", x=[1.0, 2.0])]),
    }
    for message, other in refused.items():
        with pytest.raises(ValueError, match=message):
            compare(ours, other, "standard", "x")
    with pytest.raises(ValueError, match="has no value for each product"):
        compare(refused["has no value for each product"], ours, "standard", "x")
    with pytest.raises(ValueError, match="holds no cluster/ of each product; run the task again"):
        compare(ours, ours, "standard", "nmi")
    instances = [result(two, task="instance_retrieval", settings={"category_level": level}) for level in (1, 2)]
    assert compare(*instances, "standard", "x", num_replicates=20).estimate == 0.0


def test_the_time_is_told_in_utc(tmp_path, monkeypatch):
    monkeypatch.setattr(results.time, "gmtime", lambda: results.time.struct_time((2031, 2, 3, 4, 5, 6, 0, 34, 0)))
    write_result(tmp_path, result([]))
    assert json.loads((tmp_path / "results.json").read_text())["time"] == "2031-02-03T04:05:06Z"
