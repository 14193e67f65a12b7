"""One shard: its tar, its index, and what becomes of media that are too large or changed."""

import hashlib
import io
import json
import shutil
import tarfile
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from catalogue_cases import record, write_catalogue

from m5ds import files
from m5ds.data.catalogue import synthetic_media
from m5ds.data.catalogue.records import CatalogueError, read_catalogue
from m5ds.data.shards import writer as shard_writer
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.lint import lint_shards
from m5ds.data.shards.manifest import read_index
from m5ds.data.shards.plan import _spool_line
from m5ds.data.shards.records import iterate_records
from m5ds.data.shards.shared_media import content_hash
from m5ds.data.shards.writer import _add_sound_of_clips, _HashedFile, _read_media, _suffix, has_sound, write_shard
from m5ds.kernels.common.philox import product_hash


@pytest.fixture
def written(tmp_path):
    items = [
        record(
            7, images=["media/b.jpg", "media/a.png"], title="ab", description="cde", attributes={"kk": "vvv", "x": 1}
        ),
        record(8, images=[], videos=[], category=None),
    ]
    path = write_catalogue(tmp_path / "c", items)
    spooled = [json.loads(_spool_line(item, None)) for item in read_catalogue(path)]
    products = [("000000004", spooled[0], 2), ("000000005", spooled[1], -1)]
    shard = write_shard(tmp_path / "out", "train/000000", products, tmp_path / "c", audio_from_video=False)
    return tmp_path / "out", shard


def test_the_index_says_what_the_tar_holds(written):
    directory, shard = written
    tar = (directory / "train/000000.tar").read_bytes()
    index = directory / "train/000000.index.parquet"
    first, second = read_index(str(directory), shard.entry).to_pylist()
    expected = {
        "key": "000000004",
        "id": "shop/7",
        "product": product_hash("shop/7"),
        "label": 2,
        "present": ["image", "text", "table"],
        "offset": 0,
        "title_chars": 2,
        "text_chars": 5,
        "table_pairs": 2,
        "table_chars": 7,
    }
    assert {name: first[name] for name in expected} == expected
    assert (second["label"], second["present"], second["table_pairs"]) == (-1, ["text", "table"], 2)
    assert second["offset"] == first["size"] and first["size"] % 512 == 0
    names = ["000000004.image.0.jpg", "000000004.image.1.png", "000000004.json"]
    assert [member["name"] for member in first["members"]] == names
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = {member.name: member for member in archive.getmembers()}
    assert list(members) == [*names, "000000005.json"]
    for row in (first, second):
        for member, digest in zip(row["members"], row["member_hashes"], strict=True):
            assert (member["offset"], member["size"]) == (
                members[member["name"]].offset_data,
                members[member["name"]].size,
            )
            assert digest == content_hash(tar[member["offset"] : member["offset"] + member["size"]])
    # The same bytes whoever builds, and whenever.
    assert {(m.mtime, m.uname, m.gname) for m in members.values()} == {(0, "m5ds", "m5ds")}
    entry = shard.entry
    assert (entry.name, entry.num_products, entry.bytes) == ("train/000000", 2, len(tar))
    assert entry.sha256 == hashlib.sha256(tar).hexdigest()
    assert entry.index_sha256 == hashlib.sha256(index.read_bytes()).hexdigest()
    assert shard.presence_patterns == {"image+text+table": 1, "text+table": 1}


def test_both_files_are_on_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    """A power cut after the rename must not leave a name that stands for half a file."""
    synced = []

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        names = sorted(path.name for path in (tmp_path / "out/train").iterdir())
        if path.is_file():
            synced.append((path.name, path.stat().st_size, names))

    monkeypatch.setattr(files.os, "fsync", fsync)
    path = write_catalogue(tmp_path / "c", [record(1)])
    spooled = [("0", json.loads(_spool_line(item, None)), 0) for item in read_catalogue(path)]
    shard = write_shard(tmp_path / "out", "train/000000", spooled, tmp_path / "c", audio_from_video=False)
    (tar, tar_size, before), (index, index_size, between) = synced
    assert tar.startswith("000000.tar.") and before == [tar] and tar_size == shard.entry.bytes
    assert index.startswith("000000.index.parquet.") and sorted(between) == sorted(["000000.tar", index])
    assert index_size == (tmp_path / "out/train/000000.index.parquet").stat().st_size
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == ["000000.index.parquet", "000000.tar"]


def media_of(tmp_path, size):
    record = {"where": "items.jsonl:3", "id": "a", "media": {"image": [["a.jpg", size, 0]]}}
    return dict(_read_media(record, tmp_path))


def test_a_media_file_may_have_one_gib_and_must_have_the_size_it_was_listed_with(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"four")
    assert media_of(tmp_path, 4) == {"image": [("jpg", b"four")]}
    for size in (3, 5, 2**30):
        with pytest.raises(
            CatalogueError, match="items.jsonl:3: product 'a': a.jpg changed while the shards were built"
        ):
            media_of(tmp_path, size)
    with pytest.raises(CatalogueError, match="a.jpg has 1073741825 bytes, more than 1073741824"):
        media_of(tmp_path, 2**30 + 1)


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("a/b.JPG", "jpg"),
        ("a.tar.gz", "gz"),
        ("a", "bin"),
        ("a.12345678", "12345678"),
        ("a.123456789", "bin"),
        ("a.ä", "bin"),
    ],
)
def test_suffixes_are_plain_and_short(path, suffix):
    assert _suffix(path) == suffix


def test_sound_comes_from_the_first_clip_that_has_any(monkeypatch):
    silent, first, second = ("mp4", b"silent"), ("webm", b"first"), ("mp4", b"second")
    monkeypatch.setattr(shard_writer, "has_sound", lambda data: data != b"silent")
    media = {"image": [("jpg", b"picture")], "video": [silent, first, second]}
    _add_sound_of_clips(media)
    assert media["audio"] == [first] and media["video"] == [silent, first, second]
    for kept in ({"video": [first], "audio": [("wav", b"own")]}, {"video": [silent]}, {"image": [first]}):
        before = dict(kept)
        _add_sound_of_clips(kept)
        assert kept == before
    features = {"video": [("npy", b"array"), ("npz", b"arrays")]}
    _add_sound_of_clips(features)
    assert list(features) == ["video"], "precomputed features have no sound"


def test_only_media_with_a_sound_stream_have_sound():
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    assert has_sound(synthetic_media.encode_wav(np.zeros(800, np.float32)))
    for other in (
        b"",
        b"junk" * 100,
        synthetic_media.encode_png(frames[0]),
        synthetic_media.encode_clip(frames, "h264"),
    ):
        assert not has_sound(other)


def test_a_hashed_file_is_a_file_for_writing_that_stays_open_below():
    below = io.BytesIO()
    file = _HashedFile(below)
    assert (file.writable(), file.readable(), file.seekable(), file.closed) == (True, False, False, False)
    assert (file.write(b"abc"), file.write(b"de")) == (3, 2)
    assert (file.tell(), file.size, below.getvalue()) == (5, 5, b"abcde")
    assert file.digest.hexdigest() == hashlib.sha256(b"abcde").hexdigest()
    file.close()
    assert file.closed and not below.closed


def clip(with_sound: bool) -> bytes:
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        video = container.add_stream("mjpeg", rate=10)
        video.width = video.height = 16
        video.pix_fmt = "yuvj420p"
        sound = container.add_stream("pcm_s16le", rate=8000) if with_sound else None
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            samples.sample_rate = 8000
            container.mux([*sound.encode(samples), *sound.encode(None)])
    return data.getvalue()


def test_sound_of_a_clip_is_declared_as_audio_only_on_request_and_only_where_it_is(tmp_path):
    items = [record(number, videos=["media/v.mkv"], share_group=number) for number in range(4)]
    path = write_catalogue(tmp_path / "c", items)
    silent, sounding = clip(False), clip(True)
    wav = io.BytesIO()
    with wave.open(wav, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 100)
    items = [
        record(0, videos=["media/silent.mkv", "media/sound.mkv"], share_group=0),
        record(1, videos=["media/silent.mkv"], share_group=1),
        record(2, videos=["media/junk.mp4"], share_group=2),
        record(3, videos=["media/sound.mkv"], audios=["media/own.wav"], share_group=3),
    ]
    path = write_catalogue(tmp_path / "c", items)
    for name, data in (
        ("silent.mkv", silent),
        ("sound.mkv", sounding),
        ("own.wav", wav.getvalue()),
        ("junk.mp4", b"x"),
    ):
        (tmp_path / "c/media" / name).write_bytes(data)

    def audio(**options):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        manifest = build_shards(path, tmp_path / "out", BuildOptions(**options))
        assert list(lint_shards(str(tmp_path / "out"))) == []
        items = [item for split in manifest.splits for item in iterate_records(str(tmp_path / "out"), manifest, split)]
        return {item["id"]: [name.split(".", 1)[1] for name in item["media"].get("audio", [])] for item in items}

    assert audio() == {"shop/0": [], "shop/1": [], "shop/2": [], "shop/3": ["audio.0.wav"]}
    assert audio(audio_from_video=True) == {
        "shop/0": ["audio.0.mkv"],
        "shop/1": [],
        "shop/2": [],
        "shop/3": ["audio.0.wav"],
    }
