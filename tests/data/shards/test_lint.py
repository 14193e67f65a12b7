"""What lint says across shards and splits, fault by fault; single shards are in test_shard_lint.py."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from catalogue_cases import record, write_catalogue

from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.lint import _AcrossSplits, _split_faults, lint_shards
from m5ds.data.shards.lint_shard import ShardFindings, _member_faults, _record_faults, lint_shard
from m5ds.data.shards.manifest import MEMBER_HASHES, ShardEntry, SplitEntry, read_index, read_manifest
from m5ds.kernels.common.philox import product_hash


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    path = write_catalogue(folder / "c", [record(number) for number in range(30)])
    build_shards(path, folder / "out", BuildOptions(shard_products=12))
    return folder / "out"


@pytest.fixture
def shards(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "out")


def entry_of(name):
    return ShardEntry(name=name, num_products=0, bytes=0, sha256="", index_sha256="")


def across(splits):
    """`splits`: of each shard its split, ids and groups as small numbers."""
    found = _AcrossSplits("DIR")
    records = {}
    for number, (split, ids, groups) in enumerate(splits):
        entry = entry_of(f"{split}/{number}")
        found.add(split, entry, ShardFindings(product_N=np.array(ids, np.int64), group_N=np.array(groups, np.int64)))
        records[entry.name] = list(zip(ids, groups, strict=True))
    found._record = lambda entry, row: dict(zip(("id", "group"), records[entry.name][row], strict=True))
    return list(found.faults())


def test_products_and_groups_of_their_own_are_no_fault():
    assert across([("train", [1, 2, 3], [7, 7, 8]), ("train", [4], [7]), ("test", [5, 6], [9, 9])]) == []


def test_every_repeated_product_is_named_with_the_shard_that_has_it_first():
    """Three times in all, or twice in one shard: one line for each product."""
    shards = [("train", [1, 2, 3], [1, 2, 3]), ("train", [4, 2], [4, 2]), ("train", [5, 4, 6, 6, 2], [5, 4, 6, 6, 2])]
    assert across(shards) == [
        "DIR/train/1.tar: product 2 is also in train/0.tar",
        "DIR/train/2.tar: product 4 is also in train/1.tar",
        "DIR/train/2.tar: product 6 is also in train/2.tar",
    ]


def test_every_group_in_two_splits_is_named_by_a_product_of_the_later_one():
    shards = [
        ("train", [1, 2], [10, 11]),
        ("train", [3], [12]),
        ("validation", [4], [13]),
        ("validation", [5, 6, 7], [14, 12, 12]),
        ("test", [8, 9], [14, 11]),
    ]
    assert across(shards) == [
        "DIR/validation/3.tar: product 6: its group 12 is in train and in validation",
        "DIR/test/4.tar: product 9: its group 11 is in train and in test",
        "DIR/test/4.tar: product 8: its group 14 is in validation and in test",
    ]


def test_a_splits_counts_are_those_of_its_shards():
    split = SplitEntry(num_products=3, shards=(), presence_patterns={"image": 2, "": 1})
    assert list(_split_faults("M", "train", split, Counter(image=2) + Counter({"": 1}))) == []
    assert list(_split_faults("M", "train", split, Counter(image=3))) == [
        "M: presence patterns of train are not those of its products"
    ]
    assert list(_split_faults("M", "train", split, Counter(image=4)))[0] == (
        "M: train says 3 products, its shards hold 4"
    )


def test_a_shards_findings_are_counted_from_its_products(built):
    manifest = read_manifest(str(built))
    entry = manifest.split("train").shards[1]
    rows = read_index(str(built), entry).to_pylist()
    found = lint_shard(str(built), manifest, entry)
    assert found.faults == [] and found.readable
    assert found.product_N.tolist() == [product_hash(row["id"]) for row in rows]
    assert found.label_N.tolist() == [row["label"] for row in rows]
    assert found.attributes == {"Colour": 12, "Watt": 12}
    assert found.presence_patterns.total() == 12 and set(found.presence_patterns) == {
        "+".join(r["present"]) for r in rows
    }
    groups = [int(row["id"].removeprefix("shop/")) // 2 for row in rows]
    digests = [hashlib.blake2b(str(group).encode(), digest_size=8).digest() for group in groups]
    assert found.group_N.tolist() == [int.from_bytes(digest, "little", signed=True) for digest in digests]


def sign(directory, name):
    tree = json.loads((directory / "manifest.json").read_text())
    for split in tree["splits"].values():
        for entry in split["shards"]:
            if entry["name"] == name:
                index = directory / f"{name}.index.parquet"
                entry["index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
                entry["bytes"] = (directory / f"{name}.tar").stat().st_size
                entry["sha256"] = hashlib.sha256((directory / f"{name}.tar").read_bytes()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(tree))


def test_shards_built_before_member_hashes_have_no_fault(shards):
    for name in ("train/000000", "train/000001", "validation/000000", "test/000000"):
        path = shards / f"{name}.index.parquet"
        pq.write_table(pq.read_table(path).drop([MEMBER_HASHES]), path)
        sign(shards, name)
    assert list(lint_shards(str(shards))) == []


def test_an_unreadable_shard_hides_the_counts_of_its_split_alone(shards):
    """What cannot be read is not counted; the other splits are, and attributes only where all could be."""
    tree = json.loads((shards / "manifest.json").read_text())
    tree["splits"]["test"]["presence_patterns"] = {"image": 1}
    tree["splits"]["validation"]["num_products"] = 99
    tree["attributes"] = {}
    (shards / "manifest.json").write_text(json.dumps(tree))
    (shards / "train/000000.index.parquet").unlink()
    faults = list(lint_shards(str(shards)))
    assert faults[0] == f"{shards}/train/000000.index.parquet: missing; copy or build the shards again"
    assert [fault.split(": ", 1)[1].split(",")[0] for fault in faults[1:]] == [
        "validation says 99 products",
        "presence patterns of test are not those of its products",
    ]


def test_a_tar_and_an_index_that_are_both_wrong_are_two_faults(shards):
    manifest = read_manifest(str(shards))
    (shards / "test/000000.index.parquet").unlink()
    tar = shards / "test/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    found = lint_shard(str(shards), manifest, manifest.splits["test"].shards[0])
    assert [fault.removeprefix(f"{shards}/test/000000.").split()[0] for fault in found.faults] == [
        "tar:",
        "index.parquet:",
    ]
    assert not found.readable


def row_of(*members, **changes):
    members = [{"name": name, "offset": offset, "size": size} for name, offset, size in members]
    return {"key": "0", "members": members, MEMBER_HASHES: None, "offset": 1024, "size": 2560} | changes


def test_members_lie_where_the_index_says_behind_their_headers():
    """Headers of 512 bytes at 1024 and 2560; contents are padded to 512: 1536 + 513 -> 2560, 3072 + 512 -> 3584."""
    members = [("0.a", 1536, 513), ("0.json", 3072, 512)]
    in_tar = {name: (offset, size) for name, offset, size in members}
    assert list(_member_faults(row_of(*members), in_tar)) == []
    assert list(_member_faults(row_of(*members[::-1]), in_tar)) == []
    assert list(_member_faults(row_of(*members, **{MEMBER_HASHES: [b"", b""]}), in_tar)) == []
    assert list(_member_faults(row_of(*members, **{MEMBER_HASHES: [b""]}), in_tar)) == [
        "index column member_hashes has 1 hashes for 2 members"
    ]
    spans = ["offset and size do not span its members"]
    for wrong in ({"offset": 1023}, {"offset": 1025}, {"size": 2559}, {"size": 2561}, {"size": 2048}):
        assert list(_member_faults(row_of(*members, **wrong), in_tar)) == spans
    assert list(_member_faults(row_of(*members), {**in_tar, "0.a": (1536, 512)})) == [
        "member 0.a lies at (1536, 512) in the tar, the index says otherwise"
    ]
    del in_tar["0.a"]
    assert list(_member_faults(row_of(*members), in_tar)) == ["declared member 0.a is not in the tar"]
    assert list(_member_faults(row_of(), in_tar)) == ["has no member"]


def test_a_record_is_held_against_its_row_and_its_members():
    item = {
        "id": "a",
        "title": "ab",
        "description": "cde",
        "attributes": [["k", "vv"], ["kk", "v"]],
        "category": ["Home", "Lamps"],
        "present": ["image", "text", "table"],
        "media": {"image": ["0.image.0.jpg", "0.image.1.jpg"]},
    }
    row = row_of(("0.image.0.jpg", 0, 0), ("0.image.1.jpg", 0, 0), ("0.json", 0, 0)) | {
        "id": "a",
        "product": product_hash("a"),
        "label": 3,
        "present": ["image", "text", "table"],
        "title_chars": 2,
        "text_chars": 5,
        "table_pairs": 2,
        "table_chars": 6,
    }
    labels = {"Home / Lamps": 3}
    assert list(_record_faults(row, item, labels)) == []
    assert list(_record_faults(row | {"label": -1}, item, {})) == []
    assert list(_record_faults(row, item, {})) == ["index column label is 3, its record says -1"]
    for column in ("product", "title_chars", "text_chars", "table_pairs", "table_chars"):
        (fault,) = _record_faults(row | {column: 9}, item, labels)
        assert fault == f"index column {column} is 9, its record says {row[column]}"
    lost = row | {"members": row["members"][1:]}
    assert list(_record_faults(lost, item, labels)) == ["declared member 0.image.0.jpg is not in the index"]
    undeclared = item | {"media": {"image": ["0.image.0.jpg"]}}
    assert list(_record_faults(row, undeclared, labels)) == ["member 0.image.1.jpg is not declared"]
    (fault, *_) = _record_faults(row, item | {"attributes": []}, labels)
    assert fault == "declares image+text+table but holds image+text"


def test_labels_outside_the_categories_are_not_counted(shards):
    """They would have no category to be counted for; the fault of the column has named them."""
    manifest = read_manifest(str(shards))
    entry = manifest.split("validation").shards[0]
    path = shards / entry.index
    table = pq.read_table(path)
    rows = table.to_pylist()
    labels = [len(manifest.categories), len(manifest.categories) - 1, 0, *(row["label"] for row in rows[3:])]
    labels = labels[: len(rows)]
    changed = table.set_column(table.column_names.index("label"), table.schema.field("label"), [labels])
    pq.write_table(changed, path)
    sign(shards, entry.name)
    manifest = read_manifest(str(shards))
    found = lint_shard(str(shards), manifest, manifest.split("validation").shards[0])
    assert found.label_N.tolist() == labels[1:]
    assert any("index column label is" in fault for fault in found.faults)


def without_columns(shards, entry, row):
    path = shards / entry.index
    pq.write_table(pq.read_table(path).drop(["table_chars"]), path)


def without_tar(shards, entry, row):
    (shards / entry.tar).write_bytes(b"x" * 2048)


def record_changed(old, new):
    def change(shards, entry, row):
        member = row["members"][-1]
        assert member["name"].endswith(".json")
        with (shards / entry.tar).open("r+b") as tar:
            tar.seek(member["offset"])
            data = tar.read(member["size"])
            assert old in data and len(old) == len(new)
            tar.seek(member["offset"])
            tar.write(data.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "fault", "products"),
    [
        (without_columns, "columns are not those of docs/architecture.md", 0),
        (without_tar, "not readable as a tar", 0),
        (record_changed(b'"title"', b'"other"'), "json is malformed (KeyError('title'))", 2),
        (record_changed(b'"group"', b'"other"'), "json is malformed (KeyError('group'))", 2),
        (record_changed(b'{"id"', b'["id"'), "json is not JSON", 2),
    ],
)
def test_a_shard_with_a_product_that_cannot_be_read_is_marked(shards, damage, fault, products):
    """Its products still count for ids in several splits; its groups are of nobody's."""
    entry = read_manifest(str(shards)).split("validation").shards[0]
    row = read_index(str(shards), entry).to_pylist()[0]
    damage(shards, entry, row)
    sign(shards, entry.name)
    manifest = read_manifest(str(shards))
    found = lint_shard(str(shards), manifest, manifest.split("validation").shards[0])
    assert found.readable is False
    assert len(found.faults) == 1 and fault in found.faults[0]
    assert len(found.product_N) == len(found.group_N) == products
    if products:
        assert found.product_N[0] == product_hash(row["id"])
        digest = hashlib.blake2b(f"unreadable:{row['id']}".encode(), digest_size=8).digest()
        assert found.group_N[0] == int.from_bytes(digest, "little", signed=True)


def test_a_missing_tar_is_one_fault_and_its_shard_unreadable(shards):
    manifest = read_manifest(str(shards))
    entry = manifest.split("validation").shards[0]
    (shards / entry.tar).unlink()
    found = lint_shard(str(shards), manifest, entry)
    assert found.readable is False and len(found.faults) == 1 and "000000.tar: missing" in found.faults[0]


def test_shared_media_are_a_fault_of_shards_that_promise_none_and_can_be_read(shards, monkeypatch):
    asked = []
    shared = SimpleNamespace(num_contents=2, lines=lambda: iter(["2 media; remedy", "more"]), examples=("one", "two"))
    monkeypatch.setattr("m5ds.data.shards.lint.find_shared_media", lambda *given: asked.append(given) or shared)
    assert list(lint_shards(str(shards))) == [] and asked == []
    tree = json.loads((shards / "manifest.json").read_text())
    tree["options"]["group_by_content"] = True
    (shards / "manifest.json").write_text(json.dumps(tree))
    fault = f"{shards}/manifest.json: group_by_content, but 2 media, first one"
    assert list(lint_shards(str(shards))) == [fault] and len(asked) == 1
    shared.num_contents = 0
    assert list(lint_shards(str(shards))) == [] and len(asked) == 2
    (shards / "train/000000.index.parquet").unlink()
    assert len(list(lint_shards(str(shards)))) == 1 and len(asked) == 2
