"""Which checkpoints a run may go on from, and what it says where it may not."""

import copy
import json
from pathlib import Path

import pytest

from m5ds import config
from m5ds.train.checkpoints import checkpoint, run_directory, tags

ROOT = Path(__file__).resolve().parents[3]


def state(*overrides: str) -> dict:
    run = config.load(ROOT / "configs/run/quickstart.yaml", list(overrides))
    return {
        "config": run.to_dict(),
        "world_size": 2,
        "manifest_hash": "abc",
        "zero_stage": 3,
        "precision": "bf16",
    }


def found(saved: dict) -> checkpoint.SavedCheckpoint:
    return checkpoint.SavedCheckpoint(root=Path("runs/a/checkpoints"), tag="step-00000010", state=saved)


def test_same_run_has_no_differences() -> None:
    assert checkpoint.check_same_run(found(state()), copy.deepcopy(state()), 2) == []


def test_longer_run_may_resume_and_is_told_what_changed() -> None:
    changed = checkpoint.check_same_run(found(state("train.total_steps=50")), state("train.total_steps=99"), 2)
    assert changed == ["train.total_steps: 50 -> 99"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.hidden_size=64"], "model.hidden_size was 128 and is 64"),
        (["model.modalities.image.mask_ratio=0.3"], "model.modalities.image.mask_ratio"),
        (["seed=5"], "seed was 0 and is 5"),
        (["train.global_batch_size=96"], "train.global_batch_size"),
    ],
)
def test_another_model_or_order_is_refused_by_key(overrides: list[str], key: str) -> None:
    with pytest.raises(ValueError, match="the same value is needed to resume") as error:
        checkpoint.check_same_run(found(state()), state(*overrides), 2)
    assert key in str(error.value)


def test_other_data_and_what_cannot_be_resharded_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="manifest_hash was abc and is xyz"):
        checkpoint.check_same_run(found(state()), {**state(), "manifest_hash": "xyz"}, 2)
    assert checkpoint.check_same_run(found(state()), state(), 1) == []
    stage_2 = {**state(), "zero_stage": 2}
    with pytest.raises(ValueError, match="saved by 2 ranks under ZeRO-2 and this run has 1.*--num_gpus 2"):
        checkpoint.check_same_run(found(stage_2), stage_2, 1)


def test_new_runs_stand_beside_earlier_ones(tmp_path: Path) -> None:
    assert run_directory.choose(str(tmp_path), "q", "none").name == "q"
    for expected in ("q-2", "q-3"):
        (tmp_path / "q").mkdir(exist_ok=True)
        (tmp_path / "q" / "config.yaml").touch()
        chosen = run_directory.choose(str(tmp_path), "q", "none")
        assert chosen.name == expected
        chosen.mkdir()
        (chosen / "config.yaml").touch()
    assert run_directory.choose(str(tmp_path), "q", "auto").name == "q-3"


def test_other_runs_names_do_not_count(tmp_path: Path) -> None:
    for name in ("q-shuffled", "qq", "q-02"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    assert run_directory.choose(str(tmp_path), "q", "none").name == "q"
    assert run_directory.choose(str(tmp_path), "q", "auto").name == "q"


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/step-00000010"])
def test_resume_path_may_be_run_checkpoints_or_tag(tmp_path: Path, part: str) -> None:
    (tmp_path / "q/checkpoints/step-00000010").mkdir(parents=True)
    assert run_directory.choose("elsewhere", "q", str(tmp_path / "q" / part)) == tmp_path / "q"


def test_resume_path_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--resume .*nothing: no run there"):
        run_directory.choose("runs", "q", str(tmp_path / "nothing"))


def saved_tag(root: Path, step: int, created: float) -> Path:
    folder = root / tags.tag_name(step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (folder / "weights.pt").write_bytes(b"weights")
    tags.complete(root, folder.name, created, tags.describe_files(folder, tags.list_files(folder)))
    return folder


def test_resume_falls_back_to_the_newest_tag_whose_bytes_are_right(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    saved_tag(root, 10, 1.0)
    (saved_tag(root, 20, 2.0) / "weights.pt").write_bytes(b"weightZ")
    (saved_tag(root, 30, 3.0) / "manifest.json").unlink()
    found, skipped = checkpoint.find(tmp_path)
    assert found is not None
    assert (found.tag, found.state["step"]) == ("step-00000010", 10)
    assert [part in message for part, message in zip(("step-00000030", "step-00000020"), skipped, strict=True)] == [
        True
    ] * 2


def test_one_tag_that_is_asked_for_is_not_replaced_by_another(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    saved_tag(root, 10, 1.0)
    (saved_tag(root, 20, 2.0) / "manifest.json").unlink()
    found, skipped = checkpoint.find(root / "step-00000020")
    assert found is None
    assert "the save did not finish" in skipped[0]
    assert checkpoint.find(root / "step-00000010")[0] is not None


def test_a_run_without_checkpoints_has_nothing_to_skip(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path) == (None, [])
