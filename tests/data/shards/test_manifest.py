"""The manifest and the indexes: what they must say, and what is asked of the files at which price."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_cases import record, write_catalogue

from m5ds.data.shards import manifest as manifests
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.manifest import CorruptShardError, join, read_index, read_manifest, verify_shard
from m5ds.data.shards.records import iterate_records, read_record, sentences


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    path = write_catalogue(folder / "c", [record(number) for number in range(11)])
    build_shards(path, folder / "out", BuildOptions(ratios=(1.0, 0.0, 0.0), shard_products=4))
    return folder / "out"


def test_a_directory_is_joined_with_one_slash():
    assert join("s3://bucket/a/", "manifest.json") == join("s3://bucket/a", "manifest.json")
    assert join("s3://bucket/a", "train/0.tar") == "s3://bucket/a/train/0.tar"


def test_a_manifest_comes_back_as_it_was_written(built):
    manifest = read_manifest(str(built))
    assert manifest.to_bytes() == (built / "manifest.json").read_bytes()
    assert manifest.hash == hashlib.sha256(manifest.to_bytes()).hexdigest()
    assert replace(manifest, missing_media=1).hash != manifest.hash
    entry = manifest.split("train").shards[1]
    assert (entry.tar, entry.index) == ("train/000001.tar", "train/000001.index.parquet")
    assert isinstance(manifest.modalities, tuple) and isinstance(manifest.categories, tuple)


@pytest.mark.parametrize("tree", [3, None, [], {"version": 0}, {"version": 2}, {"version": "1"}, {}])
def test_only_a_manifest_of_this_version_is_read(tmp_path, tree):
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    found = tree.get("version") if isinstance(tree, dict) else tree
    with pytest.raises(ValueError) as caught:
        read_manifest(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}/manifest.json: version must be 1, got {found!r}; build the shards again"


@pytest.mark.parametrize("change", [{"splits": {"train": {}}}, {"splits": 3}, {"surplus": 1}, {"modalities": 5}])
def test_a_manifest_with_wrong_fields_is_malformed(built, tmp_path, change):
    tree = json.loads((built / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**tree, **change}))
    with pytest.raises(ValueError, match="manifest.json: malformed .*build the shards again with --overwrite"):
        read_manifest(str(tmp_path))


def test_an_index_must_have_a_row_for_every_product(built):
    entry = read_manifest(str(built)).split("train").shards[0]
    assert read_index(str(built), entry).num_rows == entry.num_products == 4
    with pytest.raises(CorruptShardError, match="000000.index.parquet: 4 rows, the manifest says 5 products"):
        read_index(str(built), replace(entry, num_products=5))
    with pytest.raises(CorruptShardError, match="bytes do not match the manifest"):
        read_index(str(built), replace(entry, index_sha256="0"))


def test_the_cheap_check_asks_for_sizes_and_the_full_one_reads_both_files(built, monkeypatch):
    opened = []
    real = manifests.open_file
    monkeypatch.setattr(manifests, "open_file", lambda folder, name: opened.append(name) or real(folder, name))
    entry = read_manifest(str(built)).split("train").shards[0]
    opened.clear()
    verify_shard(str(built), entry, full=False)
    assert opened == []
    verify_shard(str(built), entry, full=True)
    assert opened == [entry.tar, entry.index]
    for lie in ({"sha256": "0"}, {"index_sha256": "0"}):
        verify_shard(str(built), replace(entry, **lie), full=False)
        with pytest.raises(CorruptShardError, match="bytes do not match the manifest"):
            verify_shard(str(built), replace(entry, **lie), full=True)
    for size in (entry.bytes - 1, entry.bytes + 1):
        with pytest.raises(CorruptShardError, match=f"{entry.bytes} bytes, the manifest says {size}"):
            verify_shard(str(built), replace(entry, bytes=size), full=False)


@pytest.mark.parametrize("limit", [None, 0, 1, 3, 4, 5, 8, 11, 99])
def test_the_first_records_of_a_split_come_in_shard_order(built, monkeypatch, limit):
    """Of the three shards (4, 4 and 3 products) only those that hold them are opened."""
    manifest = read_manifest(str(built))
    everything = [
        row["id"] for shard in manifest.split("train").shards for row in read_index(str(built), shard).to_pylist()
    ]
    opened = []
    real = manifests.read_index
    monkeypatch.setattr("m5ds.data.shards.records.read_index", lambda *given: opened.append(given) or real(*given))
    found = [item["id"] for item in iterate_records(str(built), manifest, "train", limit)]
    wanted = 11 if limit is None else min(limit, 11)
    assert found == everything[:wanted] and len(found) == wanted
    assert len(opened) == -(-wanted // 4)


def test_a_product_without_a_readable_record_is_a_corrupt_shard(built):
    entry = read_manifest(str(built)).split("train").shards[0]
    members = read_index(str(built), entry).column("members")[1].as_py()
    with (built / entry.tar).open("rb") as tar:
        assert read_record(str(built), entry, tar, members)["id"].startswith("shop/")
        with pytest.raises(CorruptShardError, match="000000.index.parquet: a product without .json"):
            read_record(str(built), entry, tar, [m for m in members if not m["name"].endswith(".json")])
        moved = [{**member, "offset": member["offset"] + 1} for member in members]
        with pytest.raises(CorruptShardError, match="000000.tar: .*json is not JSON"):
            read_record(str(built), entry, tar, moved)


def test_a_tokenizer_sees_a_products_texts_and_every_key_and_value_by_itself():
    item = {
        "title": "red lamp",
        "description": "bright",
        "attributes": [["Colour", "red"], ["Watt", "5"]],
        "i18n": {"zh": {"title": "台灯", "description": "亮"}, "de": {"title": "Lampe"}},
    }
    texts = ["red lamp", "bright", "Colour red Watt 5", "Colour", "red", "Watt", "5"]
    assert list(sentences(item)) == texts
    assert list(sentences(item, with_i18n=True)) == [*texts, "台灯", "亮", "Lampe"]


def test_indexes_of_shards_built_before_member_hashes_are_read(built, tmp_path):
    entry = read_manifest(str(built)).split("train").shards[0]
    table = pq.read_table(built / entry.index).drop([manifests.MEMBER_HASHES])
    (tmp_path / "train").mkdir()
    pq.write_table(table, tmp_path / entry.index)
    signed = replace(entry, index_sha256=hashlib.sha256((tmp_path / entry.index).read_bytes()).hexdigest())
    assert read_index(str(tmp_path), signed).num_rows == 4
    assert manifests.INDEX_SCHEMA.names[-1] == "member_hashes" and pa.types.is_list(manifests.INDEX_SCHEMA.types[-1])
