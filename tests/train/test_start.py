"""Where a run writes, what it goes on from, and what its engine is told, on one rank and on several."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks_as_threads import RanksAsThreads

from m5ds import config
from m5ds.train import runtime, start
from m5ds.train.checkpoints import checkpoint, reshard, tags
from m5ds.train.distributed import RankError
from m5ds.train.engine import build as engine
from m5ds.train.engine import ds_config
from m5ds.train.engine.precision import Precision

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = 100


def run_config(*overrides: str) -> config.RunConfig:
    return config.load(ROOT / "configs/run/quickstart.yaml", ["train.total_steps=40", *overrides])


def saved(root: Path, step: int, created: float = 1.0) -> Path:
    folder = root / tags.tag_name(step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    tags.complete(root, folder.name, created, tags.describe_files(folder, ["state.json"]))
    return folder


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run named `q` with tags of 10 and 20 steps, and a save of 30 that did not finish."""
    for step in (10, 20, 30):
        saved(tmp_path / "q/checkpoints", step, float(step))
    (tmp_path / "q/checkpoints/step-00000030/manifest.json").unlink()
    return tmp_path / "q"


def find(folder: Path, resume: str):
    return start.find_run(run_config("name=q", f"output_dir={folder.parent}"), resume)


def test_a_new_run_goes_on_from_nothing_and_beside_the_earlier_one(run_folder, capsys) -> None:
    directory, found = find(run_folder, "none")
    assert (directory, found) == (run_folder.with_name("q-2"), None)
    assert capsys.readouterr().out == ""


def test_auto_goes_on_from_the_newest_good_tag_and_says_what_it_skipped(run_folder, capsys) -> None:
    directory, found = find(run_folder, "auto")
    assert found is not None
    assert (directory, found.root, found.tag) == (run_folder, run_folder / "checkpoints", "step-00000020")
    assert found.state == {"step": 20}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("skipped checkpoint: ") and "step-00000030" in line


def test_auto_without_any_checkpoint_starts_anew(tmp_path) -> None:
    assert find(tmp_path / "q", "auto") == (tmp_path / "q", None)


def test_a_path_goes_on_with_that_run_and_that_tag(run_folder) -> None:
    elsewhere = run_folder.parent / "elsewhere" / "q"
    assert find(elsewhere, str(run_folder))[1].tag == "step-00000020"
    directory, found = find(elsewhere, str(run_folder / "checkpoints/step-00000010"))
    assert (directory, found.tag) == (run_folder, "step-00000010")


def test_a_path_without_a_usable_checkpoint_is_an_error_with_the_reason(run_folder) -> None:
    torn = run_folder / "checkpoints/step-00000030"
    with pytest.raises(ValueError, match=rf"--resume {torn}: no usable checkpoint: .*the save did not finish"):
        find(run_folder, str(torn))
    (run_folder / "checkpoints/step-00000010/state.json").unlink()
    (run_folder / "checkpoints/step-00000020/state.json").unlink()
    with pytest.raises(ValueError, match=r"step-00000010/state.json: missing; .*step-00000020/state.json: missing; "):
        find(run_folder, str(run_folder))
    empty = run_folder.with_name("empty")
    (empty / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no usable checkpoint: none there$"):
        find(run_folder, str(empty))


def test_all_ranks_take_the_folder_of_rank_0_which_alone_prints(run_folder, monkeypatch, capsys) -> None:
    ranks = RanksAsThreads(monkeypatch, 3)
    choose = start.run_directory.choose
    monkeypatch.setattr(
        start.run_directory, "choose", lambda *a: choose(*a) if ranks.rank() == 0 else Path("/other/rank")
    )
    results = ranks.run(lambda _: find(run_folder, "auto"))
    assert results == [results[0]] * 3 and results[0][0] == run_folder
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_folder_that_one_rank_cannot_read_stops_all(run_folder, monkeypatch) -> None:
    ranks = RanksAsThreads(monkeypatch, 2)

    def choose(*_):
        if ranks.rank() == 1:
            raise OSError("no such disk")
        return run_folder

    monkeypatch.setattr(start.run_directory, "choose", choose)
    errors = ranks.run(lambda _: find(run_folder, "none"))
    assert [type(error) for error in errors] == [RankError, OSError]
    assert str(errors[0]) == "rank 1: no such disk"


def opened(num_products: int = PRODUCTS):
    training = SimpleNamespace(num_products=num_products)
    return SimpleNamespace(training=training, shards="some/shards", manifest_hash="abc")


def planned(*overrides: str, found=None, tree: dict | None = None, num_products: int = PRODUCTS, **facts):
    ds = ds_config.read(ROOT / "configs/zero3.json")
    ds = ds_config.DeepSpeedJson(path="ds.json", tree={**ds.tree, **(tree or {})})
    return start.plan(run_config(*overrides), ds, opened(num_products), found, **facts)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "code_version", lambda: "1+c0ffee")


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["train.total_steps=33"], 33),
        (["train.total_steps=null", "train.epochs=1"], 12),
        (["train.total_steps=null", "train.epochs=3"], 37),  # 300 products, of which 4 are left over
    ],
)
def test_a_run_is_as_long_as_its_steps_or_as_whole_batches_of_its_epochs(overrides, steps) -> None:
    plan = planned("train.global_batch_size=8", "train.validation_batch_size=8", *overrides)
    assert plan.total_steps == steps
    assert plan.resolved["train_batch_size"] == 8


def test_a_run_has_a_step_at_least() -> None:
    few = ["train.total_steps=null", "train.epochs=1", "train.global_batch_size=8"]
    assert planned(*few, num_products=7).total_steps == 1


def test_deepspeed_is_told_ranks_device_steps_and_precision(monkeypatch) -> None:
    scheduler = {"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}}
    tree = {"optimizer": {"type": "AdamW"}, "scheduler": scheduler}
    ranks = RanksAsThreads(monkeypatch, 2)
    plans = ranks.run(lambda _: planned("train.global_batch_size=48", "train.warmup_ratio=0.25", tree=tree))
    for plan in plans:
        assert plan.resolved["train_micro_batch_size_per_gpu"] == 24
        assert plan.resolved["scheduler"]["params"] == {"total_num_steps": 40, "warmup_num_steps": 10}
        assert plan.resolved["optimizer"]["params"]["torch_adam"] is True
        assert not plan.resolved["bf16"]["enabled"] and plan.precision.name == "fp32"
        assert plan.identity["world_size"] == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(start, "choose", lambda *_: Precision("bf16", "here"))
    plan = ranks.run(lambda _: planned(tree=tree))[0]
    assert "torch_adam" not in plan.resolved["optimizer"]["params"]
    assert plan.resolved["bf16"]["enabled"] and plan.identity["precision"] == "bf16"


def test_the_identity_says_what_the_run_is() -> None:
    plan = planned("seed=4", task="none")
    assert plan.identity == {
        "config": run_config("seed=4").to_dict(),
        "world_size": 1,
        "zero_stage": 3,
        "precision": "fp32",
        "shards": "some/shards",
        "manifest_hash": "abc",
        "code_version": "1+c0ffee",
        "task": "none",
    }


def found_with(**changes) -> checkpoint.SavedCheckpoint:
    state = {**planned().identity, "step": 5, **changes}
    return checkpoint.SavedCheckpoint(root=Path("runs/a/checkpoints"), tag="step-00000005", state=state)


def test_a_resumed_run_keeps_its_precision_and_prints_what_changed(monkeypatch, capsys) -> None:
    found = found_with(precision="bf16")
    assert planned(found=found).precision.name == "bf16"
    assert capsys.readouterr().out == "resuming runs/a/checkpoints/step-00000005\n"
    planned("train.total_steps=50", "train.log_every=3", found=found)
    assert capsys.readouterr().out.splitlines() == [
        "resuming runs/a/checkpoints/step-00000005",
        "  changed train.total_steps: 40 -> 50",
        f"  changed train.log_every: {run_config().train.log_every} -> 3",
    ]
    RanksAsThreads(monkeypatch, 3).run(lambda _: planned(found=found))
    assert len(capsys.readouterr().out.splitlines()) == 1, "rank 0 alone speaks"


def test_a_checkpoint_of_another_run_is_refused() -> None:
    with pytest.raises(ValueError, match="seed was 0 and is 9"):
        planned("seed=9", found=found_with())
    with pytest.raises(ValueError, match=re.escape("saved by 4 ranks under ZeRO-2 and this run has 1")):
        planned(found=found_with(world_size=4, zero_stage=2))


@pytest.fixture
def calls(monkeypatch) -> list:
    """What start_engine asks of others, in order."""
    made: list = []

    def note(name, result=None):
        def noted(*arguments):
            made.append((name, *arguments))
            return result

        return noted

    monkeypatch.setattr(engine, "initialize", note("initialize", "the engine"))
    monkeypatch.setattr(checkpoint, "load", note("load"))
    monkeypatch.setattr(reshard, "to_universal", note("to_universal", "universal-tag"))
    monkeypatch.setattr(reshard, "remove", note("remove"))
    return made


def plan_of(resolved: dict) -> start.Plan:
    return start.Plan(total_steps=7, resolved=resolved, precision=Precision("fp32", ""), identity={})


def test_a_new_engine_loads_nothing(calls) -> None:
    assert start.start_engine("model", "config", plan_of({"a": 1}), None) == "the engine"
    assert calls == [("initialize", "model", "config", {"a": 1}, 7)]


def test_an_engine_of_as_many_ranks_loads_the_checkpoint_as_it_is(calls) -> None:
    found = found_with(world_size=1)
    assert start.start_engine("model", "config", plan_of({"a": 1}), found) == "the engine"
    assert calls == [("initialize", "model", "config", {"a": 1}, 7), ("load", "the engine", found, None)]


@pytest.mark.parametrize("resolved", [{"a": 1}, {"checkpoint": {"tag_validation": "Fail"}}])
def test_an_engine_of_other_ranks_loads_a_universal_copy_that_is_removed_afterwards(calls, resolved) -> None:
    found, before = found_with(world_size=2), dict(resolved)
    start.start_engine("model", "config", plan_of(resolved), found)
    section = {**resolved.get("checkpoint", {}), "load_universal": True}
    assert calls == [
        ("to_universal", found.root, found.tag),
        ("initialize", "model", "config", {**resolved, "checkpoint": section}, 7),
        ("load", "the engine", found, "universal-tag"),
        ("remove", found.root, "universal-tag"),
    ]
    assert resolved == before, "what the run's folder describes is not changed"
