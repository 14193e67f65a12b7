"""A checkpoint tag is complete only when its manifest says so and every byte agrees."""

import hashlib
from pathlib import Path

import pytest

from m5ds import files
from m5ds.train.checkpoints import tags


def save(root: Path, step: int, created: float) -> str:
    tag = tags.tag_name(step)
    (root / tag / "tokenizer").mkdir(parents=True)
    (root / tag / "weights.pt").write_bytes(b"w" * step)
    (root / tag / "tokenizer" / "model").write_bytes(b"t")
    tags.complete(root, tag, created, tags.describe_files(root / tag, tags.list_files(root / tag)))
    return tag


def test_complete_tag_lists_every_file_and_latest_points_at_it(tmp_path: Path) -> None:
    tag = save(tmp_path, 7, 1.0)
    assert sorted(tags.read(tmp_path, tag).files) == ["tokenizer/model", "weights.pt"]
    assert (tmp_path / "latest").read_text() == tag


def test_newest_is_by_time_of_saving_not_by_step(tmp_path: Path) -> None:
    """A run resumed from an older tag leaves later steps of the abandoned branch behind."""
    save(tmp_path, 30, 1.0)
    save(tmp_path, 20, 2.0)
    assert [tag.name for tag in tags.newest_first(tmp_path)[0]] == [tags.tag_name(20), tags.tag_name(30)]


@pytest.mark.parametrize("damage", ["no manifest", "missing file", "short file", "torn manifest"])
def test_damaged_tag_is_skipped_with_the_reason(tmp_path: Path, damage: str) -> None:
    good, bad = save(tmp_path, 10, 1.0), save(tmp_path, 20, 2.0)
    if damage == "no manifest":
        (tmp_path / bad / tags.MANIFEST).unlink()
    elif damage == "missing file":
        (tmp_path / bad / "weights.pt").unlink()
    elif damage == "short file":
        (tmp_path / bad / "weights.pt").write_bytes(b"w")
    else:
        (tmp_path / bad / tags.MANIFEST).write_text('{"version": 1, "cre')
    found, skipped = tags.newest_first(tmp_path)
    assert [tag.name for tag in found] == [good]
    assert len(skipped) == 1
    assert bad in skipped[0]


def test_flipped_byte_is_found_by_the_hash(tmp_path: Path) -> None:
    tag = tags.read(tmp_path, save(tmp_path, 10, 1.0))
    assert tags.wrong_hashes(tmp_path, tag, sorted(tag.files)) == []
    (tmp_path / tag.name / "weights.pt").write_bytes(b"w" * 9 + b"x")
    (message,) = tags.wrong_hashes(tmp_path, tag, sorted(tag.files))
    assert "weights.pt" in message


def test_keep_last_removes_old_and_unfinished_tags(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, float(step))
    (tmp_path / "step-00000005").mkdir()
    assert tags.keep_last(tmp_path, 2) == ["step-00000005", tags.tag_name(10)]
    assert [tag.name for tag in tags.newest_first(tmp_path)[0]] == [tags.tag_name(30), tags.tag_name(20)]


def test_interrupted_removal_leaves_an_incomplete_tag(tmp_path: Path, monkeypatch) -> None:
    tag = save(tmp_path, 10, 1.0)

    def killed(*args, **kwargs) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tags.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        tags.remove(tmp_path, tag)
    assert tags.newest_first(tmp_path)[0] == []


def test_a_tag_is_named_by_its_step_in_eight_digits() -> None:
    assert [tags.tag_name(step) for step in (0, 12, 123456789)] == ["step-00000000", "step-00000012", "step-123456789"]


def test_what_a_manifest_describes_is_on_the_disk_before_it_is_written(tmp_path: Path, monkeypatch) -> None:
    """A machine that loses power must not keep a manifest of bytes that it lost."""
    synced = []

    def fsync(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        synced.append((path.name, path.read_bytes()))

    monkeypatch.setattr(files.os, "fsync", fsync)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 3)
    described = tags.describe_files(tmp_path, ["b", "a"])
    assert described == {name: {"bytes": 3, "sha256": hashlib.sha256(name.encode() * 3).hexdigest()} for name in "ab"}
    assert synced == [("b", b"bbb"), ("a", b"aaa")]


def test_files_of_subfolders_are_listed_in_order_and_only_the_tags_own_manifest_is_left_out(tmp_path: Path) -> None:
    for name in ("z.pt", "model/manifest.json", "manifest.json", "a.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert tags.list_files(tmp_path) == ["a.pt", "model/manifest.json", "z.pt"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "not readable"),
        ('{"created": 1}', "not readable: 'files'"),
        ('{"files": {}}', "not readable: 'created'"),
        ('{"created": "x", "files": {}}', "not readable"),
        ("{", "not readable"),
    ],
)
def test_a_manifest_that_is_none_says_so(tmp_path: Path, text: str, reason: str) -> None:
    tag = save(tmp_path, 10, 1.0)
    (tmp_path / tag / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        tags.read(tmp_path, tag)


def test_only_folders_of_steps_are_tags_and_others_stay(tmp_path: Path) -> None:
    save(tmp_path, 10, 1.0)
    (tmp_path / "universal-step-00000010").mkdir()
    assert tags.keep_last(tmp_path, 1) == []
    assert tags.keep_last(tmp_path, 0) == ["step-00000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "universal-step-00000010"]


def test_a_manifest_is_a_line_a_key(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    tags.complete(tmp_path, "t", 2.5, {"a": {"bytes": 1}})
    text = (tmp_path / "t/manifest.json").read_text()
    assert text == '{\n "version": 1,\n "created": 2.5,\n "files": {\n  "a": {\n   "bytes": 1\n  }\n }\n}'
