import errno
import json
import os
from pathlib import Path

import pytest

from m5ds import files


@pytest.fixture
def synced(monkeypatch):
    """(name, whether a folder, bytes of a file) of everything that was synced, in order."""
    found = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        found.append((path.name, path.is_dir(), None if path.is_dir() else path.read_bytes()))

    monkeypatch.setattr(files.os, "fsync", fsync)
    return found


def test_the_bytes_are_on_the_disk_before_the_name_and_then_the_name_is(tmp_path, synced):
    """A power cut must not leave a name that stands for half a file, nor forget the name."""
    seen = []
    rename = Path.replace
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "replace", lambda part, path: seen.append(len(synced)) or rename(part, path))
        files.write_atomically(tmp_path / "state.json", "words")
    (part, is_folder, written), folder = synced
    assert (written, is_folder, seen) == (b"words", False, [1])
    assert part.startswith("state.json.") and part.endswith(files.PART)
    assert folder == (tmp_path.name, True, None)


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "file.json"
    for data, expected in (("long " * 100, b"long " * 100), ("台灯", "台灯".encode()), (b"\x00\xff", b"\x00\xff")):
        files.write_atomically(path, data)
        assert path.read_bytes() == expected
    assert [found.name for found in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_keeps_the_old_file_and_removes_the_half_of_the_new_one(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), files.writing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True), (errno.ENOSPC, True)]
)
def test_only_a_file_system_that_syncs_no_folder_is_forgiven(tmp_path, monkeypatch, number, raised):
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fsync)
    if raised:
        with pytest.raises(OSError):
            files.sync_folder(tmp_path)
    else:
        files.sync_folder(tmp_path)


def test_hashes_are_sha256_of_the_bytes_and_a_file_is_synced_on_request_only(tmp_path, synced):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(b"abc") == files.sha256_of_file(tmp_path / "a") == known
    assert not synced
    assert files.sha256_of_file(tmp_path / "a", sync=True) == known
    assert synced == [("a", False, b"abc")]


def test_a_lock_has_one_holder_and_is_let_go_after_an_error(tmp_path):
    path = tmp_path / "lock"
    with files.locked(path, wait=True), pytest.raises(BlockingIOError), files.locked(path, wait=False):
        pass
    with pytest.raises(ValueError), files.locked(path, wait=False):
        raise ValueError
    with files.locked(path, wait=False):
        pass


def test_only_the_last_line_may_be_torn(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert files.read_lines(path) == []
    path.write_text('{"a": 1}\n{"b": 2}\n{"c"')
    assert files.read_lines(path) == [{"a": 1}, {"b": 2}]
    path.write_text("".join(json.dumps({"a": number}) + "\n" for number in range(3)))
    assert files.read_lines(path) == [{"a": 0}, {"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"b"\n{"c": 3}\n')
    with pytest.raises(ValueError, match=r"lines\.jsonl: line 2 is not JSON .*; move the file away"):
        files.read_lines(path)
