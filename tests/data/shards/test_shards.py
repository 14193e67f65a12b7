import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from catalogue_cases import files_below, record, write_catalogue

from m5ds.data.catalogue.formats import CatalogueError
from m5ds.data.catalogue.records import CatalogueOptions
from m5ds.data.shards import build as shards_module
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.lint import lint_shards
from m5ds.data.shards.manifest import read_index, read_manifest
from m5ds.data.shards.plan import assign_splits
from m5ds.data.shards.records import iterate_records
from m5ds.kernels.common.philox import product_hash

SMALL = BuildOptions(shard_products=10)


@pytest.fixture
def catalogue(tmp_path) -> Path:
    return write_catalogue(tmp_path / "catalogue", [record(number) for number in range(60)])


def rows_of(directory, split):
    manifest = read_manifest(str(directory))
    shards = manifest.split(split).shards
    return [(entry, row) for entry in shards for row in read_index(str(directory), entry).to_pylist()]


def records_of(directory, split):
    return list(iterate_records(str(directory), read_manifest(str(directory)), split))


def test_every_product_is_in_exactly_one_split_with_its_media(catalogue, tmp_path):
    manifest = build_shards(catalogue, tmp_path / "out", SMALL)
    assert list(manifest.splits) == ["train", "validation", "test"]
    ids = Counter(item["id"] for split in manifest.splits for item in records_of(tmp_path / "out", split))
    assert ids == Counter(f"shop/{number}" for number in range(60))
    assert manifest == read_manifest(str(tmp_path / "out"))


def test_the_index_finds_every_member_without_reading_the_tar_from_its_start(catalogue, tmp_path):
    build_shards(catalogue, tmp_path / "out", SMALL)
    for entry, row in rows_of(tmp_path / "out", "train"):
        tar = (tmp_path / "out" / entry.tar).read_bytes()
        found = {m["name"]: tar[m["offset"] : m["offset"] + m["size"]] for m in row["members"]}
        number = row["id"].removeprefix("shop/")
        item = json.loads(found[f"{row['key']}.json"])
        assert item["id"] == row["id"] and row["product"] == product_hash(row["id"])
        assert found[item["media"]["image"][0]] == f"bytes of media/{number}.jpg".encode() * 40
        with tarfile.open(fileobj=io.BytesIO(tar[row["offset"] : row["offset"] + row["size"]])) as alone:
            assert alone.getnames() == [member["name"] for member in row["members"]]


def test_webdataset_reads_the_shards(catalogue, tmp_path):
    build_shards(catalogue, tmp_path / "out", SMALL)
    samples = list(webdataset.WebDataset(str(tmp_path / "out/train/000000.tar"), shardshuffle=False))
    assert len(samples) == read_manifest(str(tmp_path / "out")).splits["train"].shards[0].num_products
    assert {"json", "image.0.jpg"} <= set(samples[0])


def test_groups_never_straddle_splits_and_ratios_are_met(tmp_path):
    items = [record(number, share_group=number // 5) for number in range(400)]
    manifest = build_shards(write_catalogue(tmp_path / "c", items), tmp_path / "out")
    groups = {split: {item["group"] for item in records_of(tmp_path / "out", split)} for split in manifest.splits}
    assert not groups["train"] & groups["validation"] and not groups["train"] & groups["test"]
    assert not groups["validation"] & groups["test"]
    sizes = [manifest.splits[split].num_products for split in ("train", "validation", "test")]
    np.testing.assert_allclose(sizes, [320, 40, 40], atol=5)


@pytest.mark.parametrize("num_groups", [3, 4, 7])
def test_no_split_of_a_tiny_catalogue_is_empty(num_groups):
    group_N = np.arange(num_groups, dtype=np.uint64)
    assert set(assign_splits(group_N, (0.98, 0.01, 0.01), "share_group").tolist()) == {0, 1, 2}
    assert set(assign_splits(group_N, (0.0, 0.01, 0.99), "share_group").tolist()) == {1, 2}


def test_too_few_groups_for_the_splits_is_a_clear_error(tmp_path):
    path = write_catalogue(tmp_path / "c", [record(number, share_group=1) for number in range(9)])
    with pytest.raises(CatalogueError, match=r"1 group\(s\) by 'share_group' cannot fill 3 splits.*--ratios"):
        build_shards(path, tmp_path / "out")
    manifest = build_shards(path, tmp_path / "out", BuildOptions(ratios=(1.0, 0.0, 0.0)))
    assert list(manifest.splits) == ["train"] and manifest.splits["train"].num_products == 9


def test_another_seed_splits_and_orders_otherwise(catalogue, tmp_path):
    def ids(seed):
        build_shards(catalogue, tmp_path / str(seed), BuildOptions(seed=seed))
        return [item["id"] for item in records_of(tmp_path / str(seed), "train")]

    assert ids(0) != ids(1) and set(ids(2)) != set(ids(3))


def test_order_and_split_do_not_depend_on_the_catalogues_order(tmp_path):
    items = [record(number) for number in range(40)]
    forward = build_shards(write_catalogue(tmp_path / "a", items), tmp_path / "out_a")
    backward = build_shards(write_catalogue(tmp_path / "b", items[::-1]), tmp_path / "out_b")
    assert forward.splits == backward.splits
    assert [item["id"] for item in records_of(tmp_path / "out_a", "train")] != sorted(f"shop/{n}" for n in range(40))


def test_two_builds_give_the_same_bytes(catalogue, tmp_path):
    build_shards(catalogue, tmp_path / "one", SMALL)
    build_shards(catalogue, tmp_path / "two", SMALL)
    one = files_below(tmp_path / "one")
    assert one == files_below(tmp_path / "two")
    assert "manifest.json" in one and not any(".build" in name or name.endswith(".part") for name in one)


def test_shards_of_a_split_are_balanced(catalogue, tmp_path):
    manifest = build_shards(catalogue, tmp_path / "out", SMALL)
    sizes = [entry.num_products for entry in manifest.splits["train"].shards]
    assert max(sizes) <= 10 and max(sizes) - min(sizes) <= 1 and len(sizes) == 5


def test_manifest_counts_what_is_there(catalogue, tmp_path):
    manifest = build_shards(catalogue, tmp_path / "out")
    assert manifest.attributes == {"Colour": 60, "Watt": 60}
    assert set(manifest.categories) == {"Home / Lamps", "Home / Rare 0", "Home / Rare 4"}
    assert manifest.categories[0] == "Home / Lamps"
    patterns = Counter()
    for split in manifest.splits.values():
        patterns += Counter(split.presence_patterns)
    assert patterns == {"image+text+table": 40, "image+text+table+video": 20}
    labels = {row["id"]: row["label"] for split in manifest.splits for _, row in rows_of(tmp_path / "out", split)}
    assert labels["shop/1"] == 0 and labels["shop/0"] > 0


def test_a_category_that_train_lacks_still_has_a_label(tmp_path):
    items = [record(number, category=[f"c{number}"], share_group=number) for number in range(10)]
    manifest = build_shards(write_catalogue(tmp_path / "c", [*items, record(11, category=None)]), tmp_path / "out")
    labels = {row["id"]: row["label"] for split in manifest.splits for _, row in rows_of(tmp_path / "out", split)}
    assert sorted(labels.values()) == [-1, *range(10)] and labels["shop/11"] == -1
    in_train = {item["category"][0] for item in records_of(tmp_path / "out", "train") if item["category"]}
    assert set(manifest.categories[: len(in_train)]) == in_train


def test_a_repeated_id_is_refused_with_both_lines(tmp_path):
    path = write_catalogue(tmp_path / "c", [record(0), record(1), record(0)])
    with pytest.raises(CatalogueError, match=r"items.jsonl:3: id 'shop/0' is already taken by .*items.jsonl:1"):
        build_shards(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CatalogueOptions(group_key="shelf"), "no record has the field 'shelf'"),
        (CatalogueOptions(language="fr"), "no record has i18n in 'fr'"),
    ],
)
def test_a_misspelt_option_is_found_before_anything_is_written(catalogue, tmp_path, options, expected):
    with pytest.raises(CatalogueError, match=expected):
        build_shards(catalogue, tmp_path / "out", BuildOptions(catalogue=options))
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_an_empty_catalogue_is_refused(tmp_path):
    with pytest.raises(CatalogueError, match="holds no product"):
        build_shards(write_catalogue(tmp_path / "c", []), tmp_path / "out")


@pytest.mark.parametrize("ratios", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)])
def test_ratios_that_are_no_shares_are_refused(ratios):
    with pytest.raises(ValueError, match="add up to 1"):
        BuildOptions(ratios=ratios)


def test_a_finished_directory_is_only_built_again_on_request(catalogue, tmp_path):
    before = build_shards(catalogue, tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="pass --overwrite"):
        build_shards(catalogue, tmp_path / "out", SMALL)
    after = build_shards(catalogue, tmp_path / "out", BuildOptions(), overwrite=True)
    assert after.hash != before.hash
    assert list(lint_shards(str(tmp_path / "out"))) == []


def test_overwriting_with_a_broken_catalogue_leaves_the_old_shards_usable(catalogue, tmp_path):
    before = build_shards(catalogue, tmp_path / "out", SMALL)
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(CatalogueError):
        build_shards(tmp_path / "broken.jsonl", tmp_path / "out", SMALL, overwrite=True)
    assert read_manifest(str(tmp_path / "out")) == before
    assert list(lint_shards(str(tmp_path / "out"))) == []


def test_a_folder_of_other_things_is_left_alone(catalogue, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no shards"):
        build_shards(catalogue, tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


class Crash(Exception):
    """The process is killed here."""


def crash_at(monkeypatch, nth, where="before"):
    """Make the nth write_shard fail, after having written half of a shard or right after its rename."""
    real, calls = shards_module.write_shard, []

    def write(directory, name, products, *arguments, **options):
        calls.append(name)
        if len(calls) == nth and where == "before":
            (directory / f"{name}.tar.part").parent.mkdir(parents=True, exist_ok=True)
            (directory / f"{name}.tar.part").write_bytes(b"half")
            raise Crash
        written = real(directory, name, products, *arguments, **options)
        if len(calls) == nth:
            raise Crash
        return written

    monkeypatch.setattr(shards_module, "write_shard", write)
    return calls


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_build_that_was_cut_off_resumes_to_the_same_bytes(catalogue, tmp_path, monkeypatch, where):
    build_shards(catalogue, tmp_path / "whole", SMALL)
    with monkeypatch.context() as patched:
        crash_at(patched, 4, where)
        with pytest.raises(Crash):
            build_shards(catalogue, tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="no such file"):
        read_manifest(str(tmp_path / "out"))
    with monkeypatch.context() as patched:
        calls = crash_at(patched, -1)
        build_shards(catalogue, tmp_path / "out", SMALL)
    assert calls[0] == "train/000003" and len(calls) == 4
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_a_cut_off_build_starts_afresh_when_a_media_file_has_changed(catalogue, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        crash_at(patched, 4)
        with pytest.raises(Crash):
            build_shards(catalogue, tmp_path / "out", SMALL)
    for path in (catalogue.parent / "media").glob("*.jpg"):
        path.write_bytes(b"another picture")
    build_shards(catalogue, tmp_path / "out", SMALL)
    build_shards(catalogue, tmp_path / "whole", SMALL)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_a_cut_off_build_starts_afresh_under_other_options(catalogue, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        crash_at(patched, 4)
        with pytest.raises(Crash):
            build_shards(catalogue, tmp_path / "out", SMALL)
    build_shards(catalogue, tmp_path / "out", BuildOptions(shard_products=25))
    build_shards(catalogue, tmp_path / "whole", BuildOptions(shard_products=25))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_two_builders_do_not_share_a_directory(catalogue, tmp_path, monkeypatch):
    inner = []

    def second(*arguments, **options):
        with pytest.raises(ValueError, match="another process is building"):
            build_shards(catalogue, tmp_path / "out", SMALL)
        inner.append(True)
        raise Crash

    monkeypatch.setattr(shards_module, "write_shard", second)
    with pytest.raises(Crash):
        build_shards(catalogue, tmp_path / "out", SMALL)
    assert inner == [True]


def test_missing_media_is_listed_beside_the_manifest(catalogue, tmp_path):
    (catalogue.parent / "media/3.mp4").unlink()
    options = BuildOptions(catalogue=CatalogueOptions(missing_media="absent"))
    manifest = build_shards(catalogue, tmp_path / "out", options)
    listed = [json.loads(line) for line in (tmp_path / "out/missing_media.jsonl").read_text().splitlines()]
    assert listed == [{"id": "shop/3", "modality": "video", "path": "media/3.mp4"}] and manifest.missing_media == 1
    (item,) = [i for split in manifest.splits for i in records_of(tmp_path / "out", split) if i["id"] == "shop/3"]
    assert item["present"] == ["image", "text", "table"] and "video" not in item["media"]


def test_media_beyond_the_limit_are_left_out(tmp_path):
    items = [record(number, images=[f"media/{number}-{i}.png" for i in range(12)]) for number in range(6)]
    path = write_catalogue(tmp_path / "c", items)
    build_shards(path, tmp_path / "all", BuildOptions())
    build_shards(path, tmp_path / "two", BuildOptions(max_media_per_modality=2))
    (item, *_) = records_of(tmp_path / "all", "train")
    assert len(item["media"]["image"]) == 12 and item["media"]["image"][2].endswith(".image.2.png")
    assert all(len(item["media"]["image"]) == 2 for item in records_of(tmp_path / "two", "train"))
    assert list(lint_shards(str(tmp_path / "all"))) == []


def test_odd_file_names_become_plain_member_names(tmp_path):
    items = [record(n, images=[f"media/a.{n}.JPEG", f"media/no-suffix-{n}", f"media/b{n}.w i"]) for n in range(6)]
    build_shards(write_catalogue(tmp_path / "c", items), tmp_path / "out")
    (item, *_) = records_of(tmp_path / "out", "train")
    assert [name.split(".", 1)[1] for name in item["media"]["image"]] == ["image.0.jpeg", "image.1.bin", "image.2.bin"]


def test_an_empty_media_file_is_kept_for_the_decoder_to_judge(catalogue, tmp_path):
    (catalogue.parent / "media/1.jpg").write_bytes(b"")
    build_shards(catalogue, tmp_path / "out")
    assert list(lint_shards(str(tmp_path / "out"))) == []


def test_media_that_changes_during_the_build_is_an_error(catalogue, tmp_path, monkeypatch):
    real = shards_module.write_shard

    def write(*arguments, **options):
        for path in (catalogue.parent / "media").glob("*.jpg"):
            path.write_bytes(b"longer or shorter than it was when the records were checked")
        return real(*arguments, **options)

    monkeypatch.setattr(shards_module, "write_shard", write)
    with pytest.raises(CatalogueError, match="changed while the shards were built; run again"):
        build_shards(catalogue, tmp_path / "out", SMALL)


def test_a_file_too_large_for_a_sample_is_refused(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr("m5ds.data.shards.writer.MAX_MEDIA_BYTES", 100)
    with pytest.raises(CatalogueError, match="more than 100; cut it or leave it out"):
        build_shards(catalogue, tmp_path / "out", SMALL)


def test_overwriting_never_takes_finished_shards_over(catalogue, tmp_path):
    """A kill between the manifest and the end leaves the notes of a build that was finished, maybe damaged since."""
    build_shards(catalogue, tmp_path / "whole", SMALL)
    real = shards_module.write_atomically
    with pytest.MonkeyPatch.context() as patched:

        def killed_after_the_manifest(path, data):
            real(path, data)
            if path.name == "manifest.json":
                raise Crash

        patched.setattr(shards_module, "write_atomically", killed_after_the_manifest)
        with pytest.raises(Crash):
            build_shards(catalogue, tmp_path / "out", SMALL)
    tar = tmp_path / "out/train/000000.tar"
    tar.write_bytes(b"\xff" * tar.stat().st_size)
    build_shards(catalogue, tmp_path / "out", SMALL, overwrite=True)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")


def test_progress_is_shown_on_request_only(catalogue, tmp_path, capsys):
    build_shards(catalogue, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    build_shards(catalogue, tmp_path / "shown", progress=True)
    shown = capsys.readouterr().err
    for part in ("checking records", "writing shards: 100%", " products"):
        assert part in shown
