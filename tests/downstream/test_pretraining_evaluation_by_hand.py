"""The comparison of runs: which tasks of which sets, which numbers, and how they are told."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream import pretraining_evaluation
from m5ds.downstream.measure import bootstrap
from m5ds.downstream.pretraining_evaluation import CROSS_MODAL_METRICS, compare, evaluate_runs, summary, write_report

CATEGORIES = ("a / x", "a / y", "b")


def test_what_is_compared_is_what_the_documentation_says():
    assert pretraining_evaluation.KS == (1, 10)
    assert CROSS_MODAL_METRICS == ("recall@1", "recall@10", "mrr@10")
    assert pretraining_evaluation.CATEGORY_METRICS == ("prec@1", "ap@10")


@pytest.fixture
def asked(monkeypatch):
    """The retrievals that are asked for, each answered by its own name."""
    found = []

    def evaluate(queries, gallery, **options):
        found.append(
            (queries.info.split, gallery.info.split, queries.info.modalities, gallery.info.modalities, options)
        )
        return len(found)

    monkeypatch.setattr(pretraining_evaluation, "evaluate_retrieval", evaluate)
    return found


def one_set(split, modalities, label_N):
    return embedding_set(np.eye(len(label_N)), label_N, split=split, modalities=modalities)


def all_sets(split, label_N, names=("image", "text", "table")):
    return {"fused": one_set(split, names, label_N)} | {name: one_set(split, (name,), label_N) for name in names}


def test_a_split_is_searched_by_modality_and_by_category_at_two_levels(asked):
    sets = {"test": all_sets("test", [0, 1, -1]), "train": all_sets("train", [2, 0, 1, 1])}
    found = pretraining_evaluation._tasks(sets, "test", CATEGORIES)
    assert list(found) == [
        "image->text",
        "text->table",
        "category leaf, gallery train",
        "category leaf, gallery own split",
        "category top, gallery train",
        "category top, gallery own split",
    ]
    assert [call[:4] for call in asked[:2]] == [
        ("test", "test", ("image",), ("text",)),
        ("test", "test", ("text",), ("table",)),
    ]
    for *_, options in asked[:2]:
        assert options["query_code_Q"].tolist() == options["gallery_code_G"].tolist() == [0, 1, 2]
        assert options["exclude_self"] is False and options["ks"] == (1, 10)
    assert [call[:2] for call in asked[2:]] == [("test", "train"), ("test", "test")] * 2
    codes = [(o["query_code_Q"].tolist(), o["gallery_code_G"].tolist()) for *_, o in asked[2:]]
    leaf, top = [0, 1, -1], [0, 0, -1]
    assert codes == [(leaf, [2, 0, 1, 1]), (leaf, leaf), (top, [1, 0, 0, 0]), (top, top)]
    for *_, options in asked[2:]:
        assert options.get("exclude_self", True) is True and options["ks"] == (1, 10)


def test_modalities_that_the_model_lacks_are_not_searched_and_train_is_its_own_gallery(asked):
    sets = {"train": all_sets("train", [0, 1, 2], names=("text", "table"))}
    found = pretraining_evaluation._tasks(sets, "train", CATEGORIES)
    assert list(found) == ["text->table", "category leaf, gallery train", "category top, gallery train"]


def scores(trained, untrained, count):
    """(trained, untrained) results with these values at every metric."""

    def one(value):
        values = {name: np.asarray(value, dtype=np.float64) for name in (*CROSS_MODAL_METRICS, "prec@1", "ap@10")}
        return SimpleNamespace(ids=tuple(f"p{i}" for i in range(count)), scores=values, num_gallery=10 * count)

    return one(trained), one(untrained)


GROUPS = {f"p{i}": f"g{i // 2}" for i in range(4)}


def test_differences_are_paired_pooled_over_runs_and_kept_for_each_run():
    pairs = [scores([1, 1, 0, 1], [0, 1, 0, 0], 4), scores([1, 0, 0, 1], [0, 0, 1, 0], 4)]
    task = compare("image->text", [pairs], GROUPS, 40)
    assert (task.name, task.num_queries, task.num_gallery) == ("image->text", 4, (40,))
    assert list(task.metrics) == [*CROSS_MODAL_METRICS]
    assert list(compare("category x", [pairs], GROUPS, 40).metrics) == ["prec@1", "ap@10"]
    found = task.metrics["mrr@10"]
    assert (found.trained, found.untrained) == (5 / 8, 2 / 8)
    gains = np.array([[1, 0, 0, 1], [1, 0, -1, 1]])
    keys = bootstrap.keys_of(["g0", "g0", "g1", "g1"])
    assert found.difference == bootstrap.bootstrap_seeds(gains, keys, num_replicates=40)
    assert found.per_run == tuple(bootstrap.bootstrap_mean(gain, keys, num_replicates=40) for gain in gains)
    alone = compare("image->text", [pairs[:1]], GROUPS, 40).metrics["mrr@10"]
    assert alone.difference == alone.per_run[0] == found.per_run[0]


def test_different_queries_of_any_run_or_side_are_refused():
    good, fewer = scores([1] * 4, [0] * 4, 4), scores([1] * 3, [0] * 3, 3)
    for pairs in ([good, (good[0], fewer[1])], [good, (fewer[0], good[1])], [(good[0], fewer[1]), good]):
        with pytest.raises(ValueError, match="scored different queries"):
            compare("x", [pairs], GROUPS, 40)


def test_intervals_have_ten_thousand_replicates_unless_said_otherwise(monkeypatch):
    asked = []

    def mean(gain_Q, keys_Q, *, num_replicates):
        asked.append(num_replicates)
        return bootstrap.Interval(estimate=0.0, low=0.0, high=0.0)

    monkeypatch.setattr(pretraining_evaluation.bootstrap, "bootstrap_mean", mean)
    compare("category", [[scores([1, 1], [0, 0], 2)]], GROUPS)
    assert set(asked) == {10_000}


@pytest.fixture
def stubbed(monkeypatch):
    """evaluate_runs over made-up runs; remembers what was loaded, embedded and compared."""
    calls = SimpleNamespace(loaded=[], embedded=[], compared=[])

    def load(path, *, untrained=False):
        calls.loaded.append((path, untrained))
        state = {"step": 5, "world_size": 2, "manifest_hash": "m", "code_version": "c", "shards": "s"}
        run = {"seed": int(path[-1]), "name": path, "model": 1}
        return SimpleNamespace(run=run, state=state, fingerprint=f"print {path} {untrained}", untrained=untrained)

    def embed(model, splits, batch_size, num_threads):
        calls.embedded.append((model.fingerprint, tuple(splits), batch_size, num_threads))
        group = {"test": ["g", ""], "validation": ["", "h"]}
        sets = {s: {"fused": embedding_set(np.eye(2), ids=[f"{s}0", f"{s}1"], group=group[s])} for s in splits}
        return {"sets": sets, "categories": ("trained", "before")[model.untrained]}

    def tasks(sets, split, categories):
        names = ["x", "y"] if split == "validation" else ["x"]
        return {name: (name, split, categories) for name in names}

    def compared(name, parts, groups, num_replicates):
        calls.compared.append((name, parts, groups, num_replicates))
        return pretraining_evaluation.Task(name=name, num_queries=1, num_gallery=(1,), metrics={})

    monkeypatch.setattr(pretraining_evaluation, "load_pretrained", load)
    monkeypatch.setattr(pretraining_evaluation, "_embeddings", embed)
    monkeypatch.setattr(pretraining_evaluation, "_tasks", tasks)
    monkeypatch.setattr(pretraining_evaluation, "compare", compared)
    return calls


def test_every_run_is_held_against_its_own_start_on_every_split_and_on_all_together(stubbed):
    said = []
    report = evaluate_runs(["run1", "run2"], batch_size=7, num_threads=3, num_replicates=50, say=said.append)
    assert stubbed.loaded == [(f"run{n}", untrained) for n in (1, 2) for untrained in (False, True)]
    assert stubbed.embedded[:2] == [
        (f"print run1 {untrained}", ("validation", "test"), 7, 3) for untrained in (True, False)
    ]
    assert said == ["run1: trained and initial weights", "run2: trained and initial weights"]
    assert report["num_replicates"] == 50 and list(report["splits"]) == ["validation", "test", "pooled"]
    assert {split: [task["name"] for task in tasks] for split, tasks in report["splits"].items()} == {
        "validation": ["x", "y"],
        "test": ["x"],
        "pooled": ["x", "y"],
    }
    assert report["runs"][1] == {
        "path": "run2",
        "seed": 2,
        "step": 5,
        "world_size": 2,
        "manifest_hash": "m",
        "code_version": "c",
        "fingerprint": "print run2 False",
    }

    def pair(name, split):
        return ((name, split, "trained"), (name, split, "before"))

    parts = [(name, parts) for name, parts, *_ in stubbed.compared]
    assert parts == [
        ("x", [[pair("x", "validation")] * 2]),
        ("y", [[pair("y", "validation")] * 2]),
        ("x", [[pair("x", "test")] * 2]),
        ("x", [[pair("x", "validation")] * 2, [pair("x", "test")] * 2]),
        ("y", [[pair("y", "validation")] * 2]),
    ]
    groups = {"validation0": "id:validation0", "validation1": "h", "test0": "g", "test1": "id:test1"}
    assert all(call[2:] == (groups, 50) for call in stubbed.compared)


def test_one_split_is_not_pooled_and_the_defaults_are_small_batches(stubbed):
    report = evaluate_runs(["run1"], ["test"])
    assert list(report["splits"]) == ["test"]
    assert stubbed.embedded[0][1:] == (("test",), 32, 1) and stubbed.compared[0][3] == 10_000
    with pytest.raises(ValueError, match="run11: has seed 1 as run1 has"):
        evaluate_runs(["run1", "run11"], ["test"])


def test_runs_are_compared_with_the_first_one_in_step_data_and_configuration():
    def run(seed, **changes):
        config = {"name": f"n{seed}", "output_dir": f"o{seed}", "seed": seed, "model": 1}
        return {"path": f"r{seed}", "seed": seed, "step": 3, "manifest_hash": "m", "config": config} | changes

    check = pretraining_evaluation.check_comparable_runs
    check([run(1)])
    check([run(1), run(2)])
    other = run(2)["config"] | {"model": 2}
    for last, key in (
        (run(2, step=4), "step"),
        (run(2, config=other), "model"),
        (run(2, manifest_hash="n"), "manifest_hash"),
    ):
        with pytest.raises(ValueError, match=f"r2: differs from r1 in {key};"):
            check([run(1), last])
    with pytest.raises(ValueError, match="r2: has seed 2 as r2 has"):
        check([run(1), run(2), run(2)])


def test_a_directory_without_its_run_is_refused():
    for run, state in ((None, {}), ({}, None)):
        with pytest.raises(ValueError, match="p: a Hugging Face directory does not know its run"):
            pretraining_evaluation._description("p", SimpleNamespace(run=run, state=state))


def test_modalities_alone_are_embedded_in_the_contrastive_space_and_train_whole_only(monkeypatch):
    wanted = []

    class Opened:
        def __init__(self, shards, split, spec, tokenizer, *, batch_size, num_threads):
            self.split, self.manifest = split, SimpleNamespace(categories=(split,))
            assert (shards, spec, tokenizer) == ("shards", "spec", "tok")

    def encode(model, data, requests, progress):
        assert progress == data.split
        wanted.append((data.split, [(r.options.modalities, r.options.states) for r in requests]))
        return [embedding_set(np.eye(1)) for _ in requests]

    monkeypatch.setattr(pretraining_evaluation, "EvaluationData", Opened)
    monkeypatch.setattr(pretraining_evaluation, "encode_split", encode)
    names = ("image", "text", "video")
    model = SimpleNamespace(
        model=SimpleNamespace(names=names, spec="spec"), state={"shards": "shards"}, tokenizer="tok"
    )
    found = pretraining_evaluation._embeddings(model, ("test", "test"), 7, 3)
    alone = [(("image",), "contrastive"), (("text",), "contrastive")]
    assert wanted == [("test", [(names, "fused"), *alone]), ("train", [(names, "fused")])]
    assert {split: list(sets) for split, sets in found["sets"].items()} == {
        "test": ["fused", "image", "text"],
        "train": ["fused"],
    }
    assert found["categories"] == ("train",)
    wanted.clear()
    pretraining_evaluation._embeddings(model, ("train",), 7, 3)
    assert wanted == [("train", [(names, "fused"), *alone])]


def difference(low):
    return {"estimate": 0.5, "low": low, "high": 0.75, "confidence": 0.95}


def report_of(low=0.25):
    metrics = {"prec@1": {"trained": 0.75, "untrained": 0.25, "difference": difference(low)}}
    task = {"name": "x", "num_queries": 4, "num_gallery": (5, 6), "metrics": metrics}
    return {"runs": [{"seed": 1}, {"seed": 2}], "splits": {"test": [task]}}


def test_the_summary_tells_every_number():
    assert summary(report_of()).splitlines() == [
        "trained minus untrained, seeds 1, 2; 95 % paired bootstrap over products and seeds",
        "test: x (4 queries, gallery 5 and 6)",
        "  prec@1    0.250 -> 0.750   0.5000 [0.2500, 0.7500]",
    ]
    assert summary(report_of(low=-0.25)).endswith("0.7500]   includes zero")


def test_the_report_is_written_with_six_digits(tmp_path):
    path = tmp_path / "a" / "b" / "report.json"
    write_report(path, {"x": 1 / 3, "name": "ü", "n": 7})
    assert path.read_text() == '{\n "x": 0.333333,\n "name": "ü",\n "n": 7\n}\n'
    write_report(path, {})
    assert json.loads(path.read_text()) == {}
