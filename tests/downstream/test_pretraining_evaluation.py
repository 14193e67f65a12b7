"""The comparison of trained runs with their initial weights."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream import pretraining_evaluation
from m5ds.downstream.embed.pretrained import load_pretrained
from m5ds.downstream.pretraining_evaluation import (
    check_comparable_runs,
    compare,
    evaluate_runs,
    level_codes,
    summary,
    write_report,
)
from m5ds.downstream.tasks.retrieval import evaluate_retrieval

CATEGORIES = ("Ships / Fighter", "Outfits / Guns", "Ships / Drone")


def results(vector_ND, codes):
    products = embedding_set(vector_ND)
    return evaluate_retrieval(products, products, query_code_Q=codes, gallery_code_G=codes, ks=(1, 10))


def run(seed, **changes):
    described = {"path": f"runs/s{seed}", "seed": seed, "step": 10, "manifest_hash": "a"}
    config = {"name": f"s{seed}", "output_dir": f"o{seed}", "seed": seed, "model": {"hidden_size": 8}}
    return described | {"config": config | changes.pop("config", {})} | changes


@pytest.fixture
def pairs():
    """Two seeds whose trained vectors separate two classes and whose untrained vectors are noise."""
    codes = np.arange(40) % 2
    made = []
    for seed in (0, 1):
        noise = np.random.default_rng(seed)
        trained = np.eye(2)[codes] + 0.01 * noise.normal(size=(40, 2))
        made.append((results(trained, codes), results(noise.normal(size=(40, 6)), codes)))
    return made


def groups(name=lambda i: f"g{i}"):
    return {f"p{i}": name(i) for i in range(40)}


def test_separated_classes_beat_noise_and_the_interval_excludes_zero(pairs):
    task = compare("category leaf", [pairs], groups(), 500)
    value = task.metrics["prec@1"]
    assert value.trained == 1.0 and value.untrained < 0.8
    assert value.difference.estimate == pytest.approx(value.trained - value.untrained)
    assert value.difference.low > 0 and len(value.per_run) == 2
    assert (task.num_queries, task.num_gallery) == (40, (40,))


def test_equal_weights_differ_by_exactly_nothing(pairs):
    value = compare("category leaf", [[(after, after) for after, _ in pairs]], groups(), 100).metrics["ap@10"]
    assert value.difference.estimate == value.difference.low == value.difference.high == 0.0
    assert not value.difference.excludes_zero


def test_products_of_one_group_are_resampled_together(pairs):
    alone = compare("category leaf", [pairs], groups(), 500).metrics["prec@1"].per_run[0]
    together = compare("category leaf", [pairs], groups(lambda i: f"g{i // 20}"), 500).metrics["prec@1"].per_run[0]
    assert together.high - together.low != alone.high - alone.low


def test_splits_are_pooled_by_query_and_keep_their_galleries(pairs):
    small = results(np.eye(2)[np.arange(10) % 2], np.arange(10) % 2)
    task = compare("category leaf", [pairs, [(small, small), (small, small)]], groups(), 100)
    alone = compare("category leaf", [pairs], groups(), 100)
    assert (task.num_queries, task.num_gallery) == (50, (40, 10))
    gains = [made.metrics["prec@1"].difference.estimate for made in (task, alone)]
    assert gains[0] == pytest.approx(gains[1] * 40 / 50)


def test_other_queries_are_refused(pairs):
    fewer = results(np.eye(2)[np.arange(10) % 2], np.arange(10) % 2)
    with pytest.raises(ValueError, match="different queries"):
        compare("category leaf", [[pairs[0], (fewer, fewer)]], groups(), 100)


def test_top_level_joins_the_leaves_of_one_branch_and_keeps_unknown_apart():
    label_N = np.array([0, 1, 2, -1])
    assert level_codes(label_N, CATEGORIES, "leaf").tolist() == [0, 1, 2, -1]
    assert level_codes(label_N, CATEGORIES, "top").tolist() == [0, 1, 0, -1]


def test_runs_may_differ_in_seed_and_name_only():
    check_comparable_runs([run(0), run(1), run(2)])
    with pytest.raises(ValueError, match="runs/s1: differs from runs/s0 in model"):
        check_comparable_runs([run(0), run(1, config={"model": {"hidden_size": 16}})])
    with pytest.raises(ValueError, match="in manifest_hash"):
        check_comparable_runs([run(0), run(1, manifest_hash="b")])


def test_a_repeated_seed_is_refused():
    with pytest.raises(ValueError, match="one run a seed"):
        check_comparable_runs([run(0), run(1), run(1)])


def test_the_report_marks_intervals_that_include_zero(pairs, tmp_path):
    same = compare("category leaf", [[(after, after) for after, _ in pairs]], groups(), 100)
    better = compare("category leaf", [pairs], groups(), 100)
    report = {
        "runs": [{"seed": 0}, {"seed": 1}],
        "splits": {"test": [dataclasses.asdict(same), dataclasses.asdict(better)]},
    }
    lines = summary(report).splitlines()
    assert lines[2].endswith("includes zero") and not lines[5].endswith("includes zero")
    write_report(tmp_path / "a" / "report.json", report)
    assert json.loads((tmp_path / "a" / "report.json").read_text())["splits"]["test"][0]["num_queries"] == 40


@pytest.fixture
def runs(monkeypatch, shards, exported):
    """Two runs by name whose trained weights are their initial ones."""

    def load(path, *, untrained=False):
        seed = int(str(path)[-1])
        state = {"step": 1, "world_size": 2, "manifest_hash": "a", "code_version": "c", "shards": str(shards)}
        return dataclasses.replace(load_pretrained(exported), run={"seed": seed, "model": {}}, state=state)

    monkeypatch.setattr(pretraining_evaluation, "load_pretrained", load)
    return ["run-0", "run-1"]


def test_runs_that_learned_nothing_show_no_difference_in_any_task(runs):
    report = evaluate_runs(runs, ["validation"], num_replicates=40)
    tasks = {task["name"]: task for task in report["splits"]["validation"]}
    assert {"image->text", "text->table", "category leaf, gallery train"} <= set(tasks)
    assert {"category top, gallery own split"} <= set(tasks)
    for task in tasks.values():
        for value in task["metrics"].values():
            assert value["trained"] == value["untrained"] and len(value["per_run"]) == 2
            assert value["difference"]["low"] == value["difference"]["high"] == 0.0
    assert [run["seed"] for run in report["runs"]] == [0, 1]
    assert "config" not in report["runs"][0]
    json.dumps(report)


def test_a_hugging_face_directory_is_refused(exported):
    with pytest.raises(ValueError, match="name a run's folder"):
        evaluate_runs([exported], ["validation"])


def test_the_number_of_decoding_threads_reaches_every_split(monkeypatch):
    """The tool's flag was taken and dropped on the way."""
    opened = []

    class Opened:
        def __init__(self, shards, split, spec, tokenizer, *, batch_size, num_threads):
            opened.append((split, batch_size, num_threads))
            self.manifest = SimpleNamespace(categories=CATEGORIES)

    monkeypatch.setattr(pretraining_evaluation, "EvaluationData", Opened)
    products = embedding_set(np.eye(2), ids=["b", "a"])
    monkeypatch.setattr(
        pretraining_evaluation, "encode_split", lambda model, data, requests, progress: [products] * len(requests)
    )
    model = SimpleNamespace(
        model=SimpleNamespace(names=("image", "text"), spec=None), state={"shards": "shards"}, tokenizer=None
    )
    found = pretraining_evaluation._embeddings(model, ("validation",), 7, 3)
    assert found["sets"]["train"]["fused"].ids == ("a", "b")
    assert opened == [("validation", 7, 3), ("train", 7, 3)]
