"""What a build writes, name by name, and what its options may be."""

import hashlib
import json
import logging
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from catalogue_cases import files_below, record, write_catalogue

from m5ds.data.catalogue.formats import CatalogueError
from m5ds.data.catalogue.records import CATEGORY_SEPARATOR, CatalogueOptions, read_catalogue
from m5ds.data.shards import build as shards_module
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.manifest import read_index, read_manifest
from m5ds.data.shards.plan import ContentGrouping, _rank_categories, make_plan
from m5ds.data.shards.records import iterate_records


def rows_of(directory, manifest):
    return {
        split: [read_index(str(directory), shard).to_pylist() for shard in entry.shards]
        for split, entry in manifest.splits.items()
    }


def test_defaults_of_a_build_are_those_of_the_documentation():
    options = BuildOptions()
    assert options.recorded() == {
        "ratios": [0.8, 0.1, 0.1],
        "shard_products": 1000,
        "seed": 0,
        "max_media_per_modality": None,
        "audio_from_video": False,
        "group_by_content": False,
        "placeholder_products": 100,
        "language": None,
        "missing_media": "error",
    }
    other = BuildOptions(
        catalogue=CatalogueOptions(language="zh", missing_media="absent"),
        ratios=(0.5, 0.25, 0.25),
        shard_products=7,
        seed=3,
        max_media_per_modality=2,
        audio_from_video=True,
        group_by_content=True,
        placeholder_products=5,
    )
    assert list(other.recorded().values()) == [[0.5, 0.25, 0.25], 7, 3, 2, True, True, 5, "zh", "absent"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": (0.5, 0.5)}, "three shares"),
        ({"ratios": (0.25, 0.25, 0.25, 0.25)}, "three shares"),
        ({"ratios": (0.8, 0.1, 0.1000015)}, "add up to 1"),
        ({"ratios": (0.8, 0.1, 0.0999985)}, "add up to 1"),
        ({"ratios": (1.5, -0.5, 0.0)}, "add up to 1"),
        ({"shard_products": 0}, "shard_products must be at least 1, got 0"),
        ({"max_media_per_modality": 0}, "max_media_per_modality must be at least 1, got 0"),
        ({"placeholder_products": 0}, "placeholder_products must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        BuildOptions(**options)


def test_options_at_their_limits_are_legal():
    for ratios in ((0.8, 0.1, 0.1000005), (0.8, 0.1, 0.0999995), (0.0, 0.0, 1.0)):
        assert BuildOptions(ratios=ratios).ratios == ratios
    BuildOptions(shard_products=1, max_media_per_modality=1, placeholder_products=1)


def test_keys_count_over_all_shards_and_splits(tmp_path):
    """Nine digits: keys of a billion products sort as they count."""
    path = write_catalogue(tmp_path / "shop", [record(number, share_group=number) for number in range(40)])
    manifest = build_shards(path, tmp_path / "out", BuildOptions(shard_products=9))
    rows = rows_of(tmp_path / "out", manifest)
    keys = [row["key"] for shards in rows.values() for shard in shards for row in shard]
    assert keys == [f"{number:09d}" for number in range(40)]
    assert {split: [len(shard) for shard in shards] for split, shards in rows.items()} == {
        "train": [8, 8, 8, 8],
        "validation": [4],
        "test": [4],
    }
    names = [shard.name for entry in manifest.splits.values() for shard in entry.shards]
    assert names == [*(f"train/00000{number}" for number in range(4)), "validation/000000", "test/000000"]
    assert manifest.modalities == ("image", "text", "table", "video", "audio") and manifest.version == 1
    assert manifest.source == {"catalogue": "shop/items.jsonl", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (manifest.group_key, manifest.missing_media) == ("share_group", 0)
    assert manifest.options == BuildOptions(shard_products=9).recorded()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "test",
        "train",
        "validation",
    ]


def test_counts_of_the_manifest_come_most_frequent_first_then_by_name(tmp_path):
    items = [
        record(number, videos=[], attributes={"b": 1, "a": 2, "c": 3} if number else {"c": 3}) for number in range(4)
    ]
    items += [record(number, images=[], videos=[], attributes={"d": 1, "c": 3}) for number in range(4, 6)]
    items += [record(number, title="", videos=[], attributes={"z": 1}) for number in range(6, 9)]
    manifest = build_shards(
        write_catalogue(tmp_path / "c", items), tmp_path / "out", BuildOptions(ratios=(1, 0, 0), shard_products=2)
    )
    train = manifest.splits["train"]
    assert list(train.presence_patterns.items()) == [("image+text+table", 4), ("image+table", 3), ("text+table", 2)]
    assert list(manifest.attributes.items()) == [("c", 6), ("a", 3), ("b", 3), ("z", 3), ("d", 2)]
    assert train.num_products == 9 and sorted(shard.num_products for shard in train.shards) == [1, 2, 2, 2, 2]


def test_labels_follow_frequency_in_train_then_names():
    categories = {"b": 0, "only in test": 1, "a": 2, "most": 3, "b too": 4}
    train_N = np.array([3, -1, 0, 2, 3, 3, 2, 0, 4, -1])
    names, label_of = _rank_categories(categories, train_N)
    assert names == ("most", "a", "b", "b too", "only in test")
    assert [names[label_of[number]] for number in range(5)] == list(categories)
    assert CATEGORY_SEPARATOR == " / "


def test_every_file_and_option_reaches_the_shards(tmp_path):
    """Language, media limit, group field and media folder, all at once."""
    items = [
        record(number, shelf=number // 6, images=[f"media/{number}-{i}.jpg" for i in range(3)]) for number in range(36)
    ]
    write_catalogue(tmp_path / "files", items)
    (tmp_path / "files/items.jsonl").rename(tmp_path / "items.txt")
    options = BuildOptions(
        catalogue=CatalogueOptions(format="jsonl", media=tmp_path / "files", group_key="shelf", language="zh"),
        max_media_per_modality=2,
        seed=5,
    )
    manifest = build_shards(tmp_path / "items.txt", tmp_path / "out", options)
    records = {split: list(iterate_records(str(tmp_path / "out"), manifest, split)) for split in manifest.splits}
    assert {split: len(found) for split, found in records.items()} == {"train": 24, "validation": 6, "test": 6}
    for found in records.values():
        groups = Counter(item["group"] for item in found)
        assert set(groups.values()) == {6}
        for item in found:
            number = item["id"].removeprefix("shop/")
            assert item["title"] == f"台灯 {number}" and item["i18n"]["original"]["title"] == f"Lamp {number} 台灯"
            assert len(item["media"]["image"]) == 2
    assert manifest.group_key == "shelf"


@pytest.mark.parametrize("lost", [".tar", ".index.parquet", "half"])
def test_a_resumed_build_writes_again_what_was_lost(tmp_path, monkeypatch, capsys, lost):
    path = write_catalogue(tmp_path / "c", [record(number) for number in range(40)])
    options = BuildOptions(shard_products=8)
    build_shards(path, tmp_path / "whole", options)
    with monkeypatch.context() as patched:
        patched.setattr(shards_module, "write_atomically", fails_at("manifest.json"))
        with pytest.raises(KeyboardInterrupt):
            build_shards(path, tmp_path / "out", options)
    tar = tmp_path / "out/train/000001.tar"
    if lost == "half":
        tar.write_bytes(tar.read_bytes()[:-512])
    else:
        (tmp_path / f"out/train/000001{lost}").unlink()
    for name in ("train/000009.tar.part", "test/000000.index.parquet.part"):
        (tmp_path / "out" / name).write_bytes(b"left by a build that was killed")
    written = []
    real = shards_module.write_shard
    monkeypatch.setattr(
        shards_module, "write_shard", lambda *given, **named: written.append(given[1]) or real(*given, **named)
    )
    build_shards(path, tmp_path / "out", options, progress=True)
    assert written == ["train/000001"] and " 40/40 " in capsys.readouterr().err
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def fails_at(name):
    real = shards_module.write_atomically

    def write(path, data):
        if path.name == name:
            raise KeyboardInterrupt
        real(path, data)

    return write


def test_another_build_leaves_nothing_of_the_one_before(tmp_path, monkeypatch):
    """Fewer shards, other splits, no missing file: neither shards nor lists of the first build stay."""
    path = write_catalogue(tmp_path / "c", [record(number) for number in range(40)])
    (tmp_path / "c/media/3.mp4").unlink()
    absent = CatalogueOptions(missing_media="absent")
    many = BuildOptions(shard_products=4, catalogue=absent)
    manifest = build_shards(path, tmp_path / "out", many)
    assert manifest.missing_media == 1 and (tmp_path / "out/missing_media.jsonl").is_file()
    (tmp_path / "c/media/3.mp4").write_bytes(b"here again")
    few = BuildOptions(ratios=(1.0, 0.0, 0.0), catalogue=absent)
    build_shards(path, tmp_path / "out", few, overwrite=True)
    build_shards(path, tmp_path / "alone", few)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    assert list(files_below(tmp_path / "out")) == ["manifest.json", "train/000000.index.parquet", "train/000000.tar"]
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(shards_module, "write_atomically", fails_at("manifest.json"))
        with pytest.raises(KeyboardInterrupt):
            build_shards(path, tmp_path / "out", many)
    build_shards(path, tmp_path / "out", few)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")


def test_a_note_of_another_build_never_vouches_for_a_shard_of_this_one(tmp_path, monkeypatch):
    """Both builds were killed: one after its notes, the next between a shard of the same size and the shard's note."""
    items = [record(number, videos=[], share_group=None, category=None) for number in range(10, 30)]
    path = write_catalogue(tmp_path / "c", items)
    one, other = (BuildOptions(ratios=(1.0, 0.0, 0.0), shard_products=10, seed=seed) for seed in (0, 1))
    with monkeypatch.context() as patched:
        patched.setattr(shards_module, "write_atomically", fails_at("manifest.json"))
        with pytest.raises(KeyboardInterrupt):
            build_shards(path, tmp_path / "out", one)
    size = (tmp_path / "out/train/000000.tar").stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(shards_module, "write_atomically", fails_at("train-000000.json"))
        with pytest.raises(KeyboardInterrupt):
            build_shards(path, tmp_path / "out", other)
    assert (tmp_path / "out/train/000000.tar").stat().st_size == size
    build_shards(path, tmp_path / "out", other)
    build_shards(path, tmp_path / "alone", other)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")


def test_an_empty_directory_may_stand_there_already(tmp_path):
    path = write_catalogue(tmp_path / "c", [record(number) for number in range(20)])
    (tmp_path / "out").mkdir()
    build_shards(path, tmp_path / "out")
    assert read_manifest(str(tmp_path / "out")).splits["train"].num_products == 16


def plan(tmp_path, records, **options):
    """The plan of a catalogue's records, which are given as `CatalogueRecord`s."""
    given = dict(
        ratios=(1.0, 0.0, 0.0), shard_products=3, seed=0, group_key="share_group", language=None, max_media=None
    )
    return make_plan(records, tmp_path / "spool", tmp_path / "missing", **given | options)


@pytest.mark.parametrize(("sharing", "warned"), [(2, False), (3, True)])
def test_a_chain_of_contents_over_a_tenth_of_the_products_is_warned_of(tmp_path, caplog, sharing, warned):
    items = [record(number, share_group=None, videos=[], images=[f"media/{number}.jpg"]) for number in range(20)]
    path = write_catalogue(tmp_path / "c", items)
    for number in range(sharing):
        (tmp_path / f"c/media/{number}.jpg").write_bytes(b"one picture")
    content = ContentGrouping(media_root=tmp_path / "c", placeholder_products=9)
    with caplog.at_level(logging.WARNING):
        plan(tmp_path, read_catalogue(path), content=content)
    message = f"--group-by-content: {sharing} of 20 products hang together"
    assert [message in entry.message for entry in caplog.records] == [True] * warned
    assert all("(now 9)" in entry.message for entry in caplog.records)


def test_a_large_group_of_the_catalogues_own_is_not_warned_of(tmp_path, caplog):
    items = [record(number, share_group="one" if number < 9 else None, videos=[]) for number in range(20)]
    content = ContentGrouping(media_root=tmp_path / "c", placeholder_products=9)
    with caplog.at_level(logging.WARNING):
        plan(tmp_path, read_catalogue(write_catalogue(tmp_path / "c", items)), content=content)
    assert not caplog.records


def test_two_ids_of_one_hash_are_told_from_one_id_twice(tmp_path, monkeypatch):
    path = write_catalogue(tmp_path / "c", [record(number) for number in range(4)])
    monkeypatch.setattr("m5ds.data.shards.plan.product_hash", lambda name: {"shop/3": 1}.get(name, len(name)))
    message = f"{path}:2: id 'shop/1' has the same 64-bit hash as 'shop/0' of {path}:1; rename one"
    with pytest.raises(CatalogueError, match=f"^{re.escape(message)}$"):
        plan(tmp_path, read_catalogue(path))


def test_the_spool_holds_every_checked_record_and_identifies_the_build(tmp_path):
    items = [record(number, images=[f"media/{number}-{i}.jpg" for i in range(2)]) for number in range(7)]
    path = write_catalogue(tmp_path / "c", items)
    made = plan(tmp_path, read_catalogue(path), max_media=1)
    lines = (tmp_path / "spool").read_bytes().splitlines(keepends=True)
    assert made.num_products == 7 and made.spool_sha256 == hashlib.sha256(b"".join(lines)).hexdigest()
    assert made.offset_N.tolist() == [sum(map(len, lines[:number])) for number in range(7)]
    spooled = json.loads(lines[3])
    status = (tmp_path / "c/media/3-0.jpg").stat()
    assert spooled["media"]["image"] == [["media/3-0.jpg", status.st_size, status.st_mtime_ns]]
    assert spooled["present"] == ["image", "text", "table", "video"] and spooled["where"] == f"{path}:4"
    assert [len(shard) for shard in made.shards["train"]] == [3, 2, 2]
    assert sorted(number for shard in made.shards["train"] for number in shard.tolist()) == list(range(7))
    assert (tmp_path / "missing").read_bytes() == b""
    assert re.fullmatch("[0-9a-f]{64}", made.spool_sha256)


def test_a_build_over_finished_shards_that_is_cut_off_leaves_no_manifest(tmp_path, monkeypatch):
    """Half of the old shards and half of the new under the old manifest would pass for whole."""
    path = write_catalogue(tmp_path / "c", [record(number) for number in range(20)])
    build_shards(path, tmp_path / "out")

    def killed(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards_module, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        build_shards(path, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/manifest.json").exists()
