"""Damaged files are listed once and stop the run when there are too many."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from m5ds.train import faults
from m5ds.train.distributed import RankError


@dataclass(frozen=True)
class Bad:
    product_id: str
    member: str
    reason: str


def test_each_file_is_listed_once_over_epochs_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "bad_media.jsonl"
    budget = faults.BadMediaBudget(path, 0.05)
    for _ in range(2):
        budget.update(num_decoded=100, num_bad=1, local=[Bad("a", "0.image.0.jpg", "truncated")])
    resumed = faults.BadMediaBudget(path, 0.05, (200, 2))
    resumed.update(num_decoded=100, num_bad=2, local=[Bad("a", "0.image.0.jpg", "x"), Bad("b", "1.video.0.mp4", "y")])
    assert [json.loads(line)["product_id"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert (resumed.num_decoded, resumed.num_bad, resumed.num_listed) == (300, 4, 2)


def test_spent_budget_raises_with_the_list(tmp_path: Path) -> None:
    budget = faults.BadMediaBudget(tmp_path / "bad_media.jsonl", 0.01)
    items = [Bad(f"p{i}", "0.image.0.jpg", "junk") for i in range(11)]
    with pytest.raises(RankError, match=r"11 of 20 media files.*max_bad_fraction 0.01.*p0/0.image.0.jpg \(junk\)"):
        budget.update(num_decoded=20, num_bad=11, local=items)


def test_one_bad_file_in_the_first_step_does_not_stop_a_run(tmp_path: Path) -> None:
    budget = faults.BadMediaBudget(tmp_path / "bad_media.jsonl", 0.01)
    budget.update(num_decoded=5, num_bad=5, local=[Bad("a", "m", "r")])


def test_files_of_validation_are_listed_but_not_counted(tmp_path: Path) -> None:
    budget = faults.BadMediaBudget(tmp_path / "bad_media.jsonl", 0.0)
    for _ in range(2):
        budget.note([Bad("a", "m", "r")])
    assert (budget.num_listed, budget.num_bad) == (1, 0)
    assert len((tmp_path / "bad_media.jsonl").read_text().splitlines()) == 1


def test_zero_fraction_stops_at_the_first(tmp_path: Path) -> None:
    with pytest.raises(RankError):
        faults.BadMediaBudget(tmp_path / "b.jsonl", 0.0).update(num_decoded=5, num_bad=1, local=[Bad("a", "m", "r")])


def test_line_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "bad_media.jsonl"
    path.write_text('{"product_id": "a", "member": "m", "reason": "r"}\n{"product_id": "b", "mem')
    budget = faults.BadMediaBudget(path, 0.05)
    assert budget.num_listed == 1
    budget.update(num_decoded=5, num_bad=1, local=[Bad("c", "m", "r")])
    assert [json.loads(line)["product_id"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_rank_0_alone_reads_and_writes_the_list(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "bad_media.jsonl"
    line = {"product_id": "a", "member": "m", "reason": "r"}
    path.write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(faults.distributed, "rank", lambda: 1)
    monkeypatch.setattr(faults.distributed, "gather_objects", lambda own: [[], own])
    budget = faults.BadMediaBudget(path, 0.5)
    budget.note([Bad("b", "m", "r")])
    assert budget.num_listed == 0 and len(path.read_text().splitlines()) == 1
    monkeypatch.setattr(faults.distributed, "rank", lambda: 0)
    first = {"product_id": "c", "member": "m", "reason": "r"}
    monkeypatch.setattr(faults.distributed, "gather_objects", lambda own: [[first], own])
    budget = faults.BadMediaBudget(path, 0.5)
    budget.note([Bad("b", "m", "r"), Bad("b", "n", "r"), Bad("a", "m", "r")])
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(item["product_id"], item["member"]) for item in listed] == [("a", "m"), ("c", "m"), ("b", "m"), ("b", "n")]


def test_a_list_with_nothing_new_is_not_made(tmp_path: Path) -> None:
    faults.BadMediaBudget(tmp_path / "bad_media.jsonl", 0.5).note([])
    assert not (tmp_path / "bad_media.jsonl").exists()


def test_the_verdict_is_rank_0s_which_alone_knows_the_list(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(faults.distributed, "broadcast_object", lambda own: "rank 0's verdict")
    with pytest.raises(RankError, match="^rank 0's verdict$"):
        faults.BadMediaBudget(tmp_path / "b.jsonl", 0.0).update(num_decoded=5, num_bad=1, local=[Bad("a", "m", "r")])
