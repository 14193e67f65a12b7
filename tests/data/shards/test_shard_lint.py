import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_cases import record, write_catalogue
from shard_cases import edit_manifest, resign

from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.lint import lint_shards
from m5ds.data.shards.manifest import CorruptShardError, read_index, read_manifest, verify_shard


@pytest.fixture
def shards(tmp_path) -> Path:
    catalogue = write_catalogue(tmp_path / "catalogue", [record(number) for number in range(30)])
    build_shards(catalogue, tmp_path / "out", BuildOptions(shard_products=12))
    return tmp_path / "out"


def faults(directory) -> str:
    return "\n".join(lint_shards(str(directory)))


def edit_index(directory, name, change) -> None:
    path = directory / f"{name}.index.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    resign(directory, name)


def first_row(directory, name="train/000000"):
    return pq.read_table(directory / f"{name}.index.parquet").to_pylist()[0]


def overwrite(directory, name, offset, data) -> None:
    with (directory / f"{name}.tar").open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_fresh_shards_have_no_fault(shards):
    assert faults(shards) == ""


def test_a_flipped_byte_is_found_by_the_hash_alone(shards):
    row = first_row(shards)
    picture = next(m for m in row["members"] if "image" in m["name"])
    overwrite(shards, "train/000000", picture["offset"] + 3, b"\xff")
    assert "train/000000.tar: bytes do not match the manifest" in faults(shards)
    entry = read_manifest(str(shards)).splits["train"].shards[0]
    verify_shard(str(shards), entry, full=False)
    with pytest.raises(CorruptShardError, match="train/000000.tar: bytes do not match"):
        verify_shard(str(shards), entry, full=True)


@pytest.mark.parametrize("full", [False, True])
def test_a_truncated_or_missing_shard_fails_even_the_cheap_check(shards, full):
    entry = read_manifest(str(shards)).splits["train"].shards[1]
    tar = shards / entry.tar
    tar.write_bytes(tar.read_bytes()[:-4000])
    with pytest.raises(CorruptShardError, match="train/000001.tar: .* bytes, the manifest says"):
        verify_shard(str(shards), entry, full=full)
    tar.unlink()
    with pytest.raises(CorruptShardError, match="train/000001.tar: missing"):
        verify_shard(str(shards), entry, full=full)
    assert "train/000001.tar: missing" in faults(shards)


def test_a_missing_or_altered_index_is_named(shards):
    entry = read_manifest(str(shards)).splits["train"].shards[0]
    index = shards / entry.index
    index.write_bytes(index.read_bytes() + b"x")
    with pytest.raises(CorruptShardError, match="train/000000.index.parquet: bytes do not match"):
        read_index(str(shards), entry)
    assert "train/000000.index.parquet: bytes do not match" in faults(shards)
    index.unlink()
    with pytest.raises(CorruptShardError, match="train/000000.index.parquet: missing"):
        verify_shard(str(shards), entry, full=False)
    assert faults(shards).count("index.parquet: missing") == 1


def test_a_declared_member_that_is_not_in_the_tar_is_corruption_not_absence(shards):
    """WebDataset issue 140: a tar cut in the middle looks like products without that modality."""
    row = first_row(shards)
    with tarfile.open(shards / "train/000000.tar") as tar:
        kept = [(member, tar.extractfile(member).read()) for member in tar if not member.name.endswith(".image.0.jpg")]
    with tarfile.open(shards / "train/000000.tar", "w") as tar:
        for member, data in kept:
            tar.addfile(member, io.BytesIO(data))
    resign(shards, "train/000000")
    assert f"product {row['id']!r}: declared member {row['key']}.image.0.jpg is not in the tar" in faults(shards)


def test_a_tar_cut_short_names_its_shard_and_its_lost_products(shards):
    rows = pq.read_table(shards / "train/000000.index.parquet").to_pylist()
    tar = shards / "train/000000.tar"
    tar.write_bytes(tar.read_bytes()[: rows[-1]["offset"]])
    found = faults(shards)
    assert "train/000000.tar" in found and repr(rows[-1]["id"]) in found


def test_offsets_that_point_elsewhere_are_found(shards):
    def change(rows):
        rows[0]["members"][0]["offset"] += 512
        rows[1]["size"] += 512

    edit_index(shards, "train/000000", change)
    found = faults(shards)
    assert "the index says otherwise" in found and "offset and size do not span its members" in found


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "shop/999"),
        ("product", 5),
        ("label", -1),
        ("present", ["image"]),
        ("title_chars", 1000),
        ("text_chars", 1000),
        ("table_pairs", 0),
        ("table_chars", 0),
    ],
)
def test_each_column_of_the_index_must_be_what_the_record_says(shards, column, value):
    edit_index(shards, "train/000000", lambda rows: rows[2].update({column: value}))
    assert f"index column {column} is {value!r}" in faults(shards)


def test_hashes_must_be_those_of_the_members(shards):
    rows = pq.read_table(shards / "train/000000.index.parquet").to_pylist()
    media = [(n, i) for n, row in enumerate(rows) for i, one in enumerate(row["members"]) if ".json" not in one["name"]]
    n, i = media[-1]
    edit_index(shards, "train/000000", lambda rows: rows[n]["member_hashes"].__setitem__(i, bytes(16)))
    expected = f"index column member_hashes is not the hash of {rows[n]['members'][i]['name']}"
    assert faults(shards).count("member_hashes") == 1 and expected in faults(shards)


def forge_record(directory, name, change) -> str:
    """Rewrite the first product's KEY.json in place, padded to its size; returns the product's id."""
    row = first_row(directory, name)
    member = next(m for m in row["members"] if m["name"].endswith(".json"))
    tar = (directory / f"{name}.tar").read_bytes()
    item = json.loads(tar[member["offset"] : member["offset"] + member["size"]])
    change(item)
    data = json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode().ljust(member["size"])
    assert len(data) == member["size"]
    overwrite(directory, name, member["offset"], data)
    resign(directory, name)
    return row["id"]


def test_presence_must_be_true_to_the_members(shards):
    product = forge_record(shards, "train/000000", lambda item: item["present"].remove("image"))
    assert f"product {product!r}: declares text+table" in faults(shards)


def test_a_member_that_the_record_does_not_declare_is_found(shards):
    product = forge_record(shards, "train/000000", lambda item: item["media"].clear())
    found = faults(shards)
    assert f"product {product!r}: member " in found and "is not declared" in found


def test_a_record_that_is_no_json_is_found(shards):
    row = first_row(shards)
    member = next(m for m in row["members"] if m["name"].endswith(".json"))
    overwrite(shards, "train/000000", member["offset"], b"!")
    resign(shards, "train/000000")
    assert f"product {row['id']!r}: " in faults(shards) and f"{member['name']} is not JSON" in faults(shards)


def test_a_group_in_two_splits_is_found(shards):
    other = first_row(shards, "test/000000")
    group = str(int(other["id"].removeprefix("shop/")) // 2)
    forge_record(shards, "train/000000", lambda item: item.update(group=group, description=""))
    assert f"its group {group!r} is in train and in test" in faults(shards)


def test_an_id_in_two_splits_is_found(shards):
    for suffix in (".tar", ".index.parquet"):
        (shards / f"test/000000{suffix}").write_bytes((shards / f"validation/000000{suffix}").read_bytes())
    resign(shards, "test/000000")
    found = faults(shards)
    assert f"product {first_row(shards, 'test/000000')['id']!r} is also in validation/000000.tar" in found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tree: tree["splits"]["train"].update(num_products=9), "train says 9 products"),
        (lambda tree: tree["splits"]["train"].update(presence_patterns={"image": 24}), "presence patterns of train"),
        (lambda tree: tree["attributes"].update(Watt=1), "attributes are not those of the products"),
        (lambda tree: tree["categories"].reverse(), "index column label"),
        (lambda tree: tree["splits"]["train"]["shards"].pop(), "train/000001.tar: not in the manifest"),
    ],
)
def test_a_manifest_that_counts_wrongly_is_found(shards, change, expected):
    edit_manifest(shards, change)
    assert expected in faults(shards)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "version must be 1"),
        ('{"version": 99}', "version must be 1, got 99"),
        ('{"version": 1}', "malformed"),
    ],
)
def test_an_unreadable_manifest_is_one_clear_line(shards, text, expected):
    (shards / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=expected):
        read_manifest(str(shards))


def test_shards_are_read_through_any_fsspec_url(shards):
    assert faults(f"file://{shards}") == ""
    manifest = read_manifest(f"file://{shards}")
    for entry in manifest.splits["train"].shards:
        verify_shard(f"file://{shards}", entry, full=True)


def test_an_unknown_split_names_those_that_exist(shards):
    with pytest.raises(ValueError, match="no split 'dev'; they have train, validation, test"):
        read_manifest(str(shards)).split("dev")


def test_shards_of_incomplete_products_have_no_fault(tmp_path):
    """Without a category (label -1), without text, with one modality alone, and with nothing shared."""
    items = [record(number) for number in range(8)]
    items.append(record(8, category=None, attributes={}))
    items.append(record(9, title="", description="", i18n={}, attributes={}, images=[], videos=["media/9.mp4"]))
    build_shards(write_catalogue(tmp_path / "catalogue", items), tmp_path / "out", BuildOptions(ratios=(1.0, 0.0, 0.0)))
    assert (
        -1
        in read_index(str(tmp_path / "out"), read_manifest(str(tmp_path / "out")).splits["train"].shards[0])[
            "label"
        ].to_pylist()
    )
    assert faults(tmp_path / "out") == ""


def test_keys_must_ascend_and_have_no_dot(shards):
    """Readers of WebDataset split a member's name at its first dot."""

    def change(rows):
        rows[1]["key"] = rows[0]["key"]
        rows[2]["key"] = f"{rows[2]['key']}.a"

    rows = pq.read_table(shards / "train/000000.index.parquet").to_pylist()
    edit_index(shards, "train/000000", change)
    found = faults(shards)
    assert f"product {rows[1]['id']!r}: key {rows[0]['key']!r} does not ascend or has a dot" in found
    assert f"product {rows[2]['id']!r}: key '{rows[2]['key']}.a' does not ascend or has a dot" in found
    assert found.count("does not ascend") == 2


def test_a_member_of_no_product_is_found(shards):
    with tarfile.open(shards / "train/000000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("zzz.image.0.jpg"))
    resign(shards, "train/000000")
    assert faults(shards).splitlines() == [
        f"{shards}/train/000000.tar: member zzz.image.0.jpg is in no product of the index"
    ]


def test_a_product_whose_index_has_no_member_is_found(shards):
    product = first_row(shards)["id"]
    edit_index(shards, "train/000000", lambda rows: rows[0]["members"].clear())
    assert f"product {product!r}: has no member" in faults(shards)


def test_a_file_that_is_no_tar_is_one_fault_and_others_are_still_read(shards):
    (shards / "train/000000.tar").write_bytes(b"x" * 2048)
    resign(shards, "train/000000")
    found = faults(shards).splitlines()
    assert len(found) == 1 and "train/000000.tar: not readable as a tar" in found[0]


def test_columns_of_another_version_are_found(shards):
    path = shards / "train/000000.index.parquet"
    pq.write_table(pq.read_table(path).drop(["table_chars"]), path)
    resign(shards, "train/000000")
    assert "train/000000.index.parquet: columns are not those of" in faults(shards)


def test_a_record_without_a_field_is_malformed(shards):
    def change(item):
        item["other"] = item.pop("title")

    product = forge_record(shards, "train/000000", change)
    assert f"product {product!r}: {first_row(shards)['key']}.json is malformed (KeyError('title'))" in faults(shards)


def test_categories_must_be_ordered_by_their_frequency_in_train(shards):
    def swap(tree):
        first, second, *rest = tree["categories"]
        tree["categories"] = [second, first, *rest]

    def change(rows):
        for row in rows:
            row["label"] = {0: 1, 1: 0}.get(row["label"], row["label"])

    edit_manifest(shards, swap)
    for split in read_manifest(str(shards)).splits.values():
        for entry in split.shards:
            edit_index(shards, entry.name, change)
    assert faults(shards) == f"{shards}/manifest.json: categories are not ordered by their frequency in train"


@pytest.mark.parametrize("name", ["train/000009.tar", "test/000009.index.parquet", "train/000000.tar.part"])
def test_files_that_a_glob_would_read_are_found(shards, name):
    (shards / name).write_bytes(b"")
    assert faults(shards) == f"{shards}/{name}: not in the manifest; remove it or build the shards again"


def test_the_hash_of_a_manifest_is_that_of_its_file_however_old(shards):
    """Checkpoints name their data by it, so how the file is written must not change."""
    path = shards / "manifest.json"
    tree = json.loads(path.read_text())
    written = json.dumps({**tree, "source": {"catalogue": "台灯", "sha256": "0"}}, indent=1, ensure_ascii=False) + "\n"
    path.write_text(written)
    assert read_manifest(str(shards)).hash == hashlib.sha256(written.encode()).hexdigest()
