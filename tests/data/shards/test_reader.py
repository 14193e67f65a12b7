"""The reader returns the products that were written, or says which shard is not what its manifest promises."""

import hashlib
import io
import json
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m5ds.data.shards import manifest as manifests
from m5ds.data.shards import reader as reader_module
from m5ds.data.shards.manifest import CorruptShardError
from m5ds.data.shards.reader import ShardReader
from m5ds.kernels.common.philox import product_hash


def product_record(number):
    media = {"image": [f"{number:06d}.image.0.jpg", f"{number:06d}.image.1.png"]} if number % 3 else {}
    return {
        "id": f"shop/{number}",
        "title": f"标题 {number}",
        "description": "",
        "attributes": [["colour", "red"], ["size", str(number)]],
        "category": ["Top", "Leaf"],
        "group": str(number),
        "present": [*media, "text", "table"],
        "media": media,
        "i18n": {},
    }


def write_shards(directory, sizes=(4, 3), drop_member=None):
    """A tiny writer of the layout in docs/architecture.md. `drop_member`: leave that member out of tar and index."""
    (directory / "train").mkdir(parents=True)
    entries, number = [], 0
    for shard, size in enumerate(sizes):
        rows = []
        tar_path = directory / f"train/{shard:06d}.tar"
        with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(size):
                record = product_record(number)
                names = [name for files in record["media"].values() for name in files]
                contents = {f"{number:06d}.json": json.dumps(record).encode()}
                contents |= {name: f"bytes of {name}".encode() * 100 for name in names}
                contents.pop(drop_member, None)
                start, members = tar.offset, []
                for name, content in contents.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    padded = (len(content) + 511) // 512 * 512
                    members.append({"name": name, "offset": tar.offset - padded, "size": len(content)})
                rows.append(
                    {
                        "key": f"{number:06d}",
                        "id": record["id"],
                        "product": product_hash(record["id"]),
                        "label": 0,
                        "present": record["present"],
                        "offset": start,
                        "size": tar.offset - start,
                        "members": members,
                        "title_chars": 4,
                        "text_chars": 4,
                        "table_pairs": 2,
                        "table_chars": 16,
                    }
                )
                number += 1
        index_path = directory / f"train/{shard:06d}.index.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=manifests.INDEX_SCHEMA), index_path)
        entries.append(
            {
                "name": f"train/{shard:06d}",
                "num_products": size,
                "bytes": tar_path.stat().st_size,
                "sha256": hashlib.sha256(tar_path.read_bytes()).hexdigest(),
                "index_sha256": hashlib.sha256(index_path.read_bytes()).hexdigest(),
            }
        )
    manifest = {
        "version": manifests.MANIFEST_VERSION,
        "modalities": ["image", "text", "table", "video", "audio"],
        "splits": {"train": {"num_products": number, "shards": entries, "presence_patterns": {}}},
        "categories": ["Top / Leaf"],
        "attributes": {},
        "source": {"catalogue": "items.jsonl", "sha256": ""},
        "group_key": "share_group",
        "options": {},
        "missing_media": 0,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(reader_module, "_FIRST_PAUSE_SECONDS", 0.0)


def test_every_product_is_read_as_it_was_written(shards):
    reader = ShardReader(shards, "train")
    assert reader.shard_sizes == [4, 3] and reader.num_products == 7
    numbers = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    for number, place in enumerate(numbers):
        product = reader.read(*place)
        assert product.id == f"shop/{number}" and product.title == f"标题 {number}"
        assert product.product == product_hash(product.id) and product.label == 0
        assert (product.description, product.category, product.group) == ("", ["Top", "Leaf"], str(number))
        assert product.attributes == [("colour", "red"), ("size", str(number))]
        names = [media.name for media in product.media.get("image", [])]
        assert names == ([f"{number:06d}.image.0.jpg", f"{number:06d}.image.1.png"] if number % 3 else [])
        for media in product.media.get("image", []):
            assert media.data == f"bytes of {media.name}".encode() * 100
        assert ("image" in product.present) == bool(number % 3)


def test_a_url_reads_like_a_path(shards):
    local, remote = ShardReader(shards, "train"), ShardReader(f"file://{shards}", "train")
    assert [local.read(1, index) for index in range(3)] == [remote.read(1, index) for index in range(3)]


def test_a_filesystem_without_descriptors_reads_the_same(shards):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/reader-test", recursive=True)
    remote = ShardReader("memory://reader-test", "train")
    assert remote.read(1, 2) == ShardReader(shards, "train").read(1, 2)


def test_one_reader_serves_many_threads(shards, monkeypatch):
    """With room for one open file, threads evict each other's descriptors while they read."""
    monkeypatch.setattr(reader_module, "_OPEN_FILES", 1)
    monkeypatch.setattr(reader_module, "LOADED_INDICES", 1)
    reader = ShardReader(shards, "train")
    expected = {place: reader.read(*place) for place in [(0, 0), (0, 3), (1, 0), (1, 2)]}
    wrong = []

    def work():
        for _ in range(60):
            wrong.extend(place for place, product in expected.items() if reader.read(*place) != product)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("name", ["train/000001.tar", "train/000001.index.parquet"])
def test_a_missing_file_is_named(shards, name):
    (shards / name).unlink()
    with pytest.raises(CorruptShardError, match=name):
        ShardReader(shards, "train")


def test_a_shard_of_another_size_is_named(shards):
    with (shards / "train/000000.tar").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptShardError, match="000000.tar"):
        ShardReader(shards, "train")


def test_a_flipped_byte_is_found_by_full_verification(shards):
    path = shards / "train/000000.tar"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(bytes(content))
    ShardReader(shards, "train")
    with pytest.raises(CorruptShardError, match="000000.tar"):
        ShardReader(shards, "train", verify="full")


def test_a_declared_member_that_the_tar_lacks_is_a_corrupt_shard_and_not_an_absence(tmp_path):
    shards = write_shards(tmp_path / "shards", drop_member="000001.image.1.png")
    reader = ShardReader(shards, "train")
    reader.read(0, 0)
    with pytest.raises(CorruptShardError, match=r"000000\.tar.*shop/1.*000001\.image\.1\.png"):
        reader.read(0, 1)


def test_a_shard_cut_after_it_was_opened_is_a_corrupt_shard(shards):
    reader = ShardReader(shards, "train")
    with (shards / "train/000001.tar").open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(CorruptShardError, match="000001.tar"):
        reader.read(1, 2)


def test_an_unknown_split_and_a_directory_without_manifest_are_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="no split 'test'"):
        ShardReader(shards, "test")
    with pytest.raises(ValueError, match="manifest.json"):
        ShardReader(tmp_path / "nothing", "train")


def test_transient_errors_are_retried_and_lasting_ones_raised(shards, monkeypatch):
    reader = ShardReader(shards, "train")
    expected = reader.read(0, 1)
    failures = [0]
    pread = reader_module.os.pread

    def flaky(*arguments):
        if failures[0] > 0:
            failures[0] -= 1
            raise OSError(5, "Input/output error")
        return pread(*arguments)

    monkeypatch.setattr(reader_module.os, "pread", flaky)
    failures[0] = 3
    assert reader.read(0, 1) == expected
    failures[0] = 4
    with pytest.raises(OSError, match="Input/output error"):
        reader.read(0, 1)


def test_close_releases_the_files_and_reading_opens_them_again(shards):
    reader = ShardReader(shards, "train")
    product = reader.read(0, 1)
    reader.close()
    assert reader.read(0, 1) == product


def rewrite(shards, change, shard=0):
    """Change the rows of a shard's index, and sign it as a buggy writer would."""
    path = shards / f"train/{shard:06d}.index.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=manifests.INDEX_SCHEMA), path)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][shard]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))


def test_a_member_outside_its_products_bytes_is_a_corrupt_shard(shards):
    def before(rows):
        rows[1]["members"][0]["offset"] = rows[1]["offset"] - 1

    def after(rows):
        last = rows[1]["members"][-1]
        last["size"] = rows[1]["offset"] + rows[1]["size"] - last["offset"] + 1

    def just_inside(rows):
        after(rows)
        rows[1]["members"][-1]["size"] -= 1

    original = (shards / "train/000000.index.parquet").read_bytes()
    for change in (before, after):
        rewrite(shards, change)
        with pytest.raises(
            CorruptShardError, match=r"000000\.tar: 000001\.\S+ lies outside the bytes of product 'shop/1'"
        ):
            ShardReader(shards, "train").read(0, 1)
        (shards / "train/000000.index.parquet").write_bytes(original)
    rewrite(shards, just_inside)
    assert ShardReader(shards, "train").read(0, 1).id == "shop/1"


def test_an_index_that_names_another_product_is_a_corrupt_shard(shards):
    rewrite(shards, lambda rows: rows[1].update(id="shop/9"))
    with pytest.raises(CorruptShardError, match="000001.json is product 'shop/1', the index says 'shop/9'"):
        ShardReader(shards, "train").read(0, 1)


def test_a_product_without_its_record_or_with_a_broken_one_is_a_corrupt_shard(shards):
    rewrite(shards, lambda rows: rows[2]["members"].pop(0))
    rewrite(shards, lambda rows: rows[1]["members"][0].update(size=7))
    reader = ShardReader(shards, "train")
    with pytest.raises(CorruptShardError, match="'shop/2' has no member 000002.json"):
        reader.read(0, 2)
    with pytest.raises(CorruptShardError, match="000001.json is not a product record"):
        reader.read(0, 1)


def test_a_short_read_is_continued(shards, monkeypatch):
    expected = ShardReader(shards, "train").read(0, 1)
    pread = reader_module.os.pread
    monkeypatch.setattr(reader_module.os, "pread", lambda file, size, offset: pread(file, min(size, 100), offset))
    assert ShardReader(shards, "train").read(0, 1) == expected


def test_pauses_grow_and_what_is_not_there_is_not_waited_for(shards, monkeypatch):
    pauses = []
    monkeypatch.setattr(reader_module, "_FIRST_PAUSE_SECONDS", 0.25)
    monkeypatch.setattr(reader_module.time, "sleep", pauses.append)
    reader = ShardReader(shards, "train")

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(reader_module.os, "pread", fail)
        reader.read(0, 0)
    assert pauses == [0.25, 0.5, 1.0]
    (shards / "train/000001.tar").unlink()
    with pytest.raises(CorruptShardError, match="000001.tar: is missing"):
        reader.read(1, 0)
    assert len(pauses) == 3


def test_indices_are_read_once_while_among_the_last_used(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "shards", sizes=(2, 2, 2))
    monkeypatch.setattr(reader_module, "LOADED_INDICES", 2)
    read_index, loaded = manifests.read_index, []
    monkeypatch.setattr(
        manifests, "read_index", lambda directory, entry: loaded.append(entry.name[-1]) or read_index(directory, entry)
    )
    reader = ShardReader(shards, "train")
    for shard in (0, 1, 0, 2, 0, 2, 1):
        assert reader.index(shard).present[1] >= {"text", "table"}
    assert "".join(loaded) == "0121"


def test_no_more_files_stay_open_than_allowed_and_none_after_close(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "shards", sizes=(1, 1, 1))
    monkeypatch.setattr(reader_module, "_OPEN_FILES", 2)
    opened, closed = [], []
    os_open, os_close = reader_module.os.open, reader_module.os.close

    def record_open(*arguments):
        opened.append(os_open(*arguments))
        return opened[-1]

    reader = ShardReader(shards, "train")
    monkeypatch.setattr(reader_module.os, "open", record_open)
    monkeypatch.setattr(reader_module.os, "close", lambda file: closed.append(file) or os_close(file))
    for shard in (0, 1, 0, 2, 0):
        reader.read(shard, 0)
    assert len(opened) == 3 and closed == [opened[1]]
    reader.close()
    assert sorted(closed) == sorted(opened)


def test_a_read_past_the_end_says_where_it_should_have_ended(shards):
    reader = ShardReader(shards, "train")
    row = reader.index(1).table.to_pylist()[2]
    with (shards / "train/000001.tar").open("r+b") as file:
        file.truncate(row["offset"] + row["size"] - 1)
    end = row["offset"] + row["size"]
    with pytest.raises(
        CorruptShardError, match=rf"000001.tar: ends before byte {end}; check it with tools/lint_shards"
    ):
        reader.read(1, 2)


def test_only_full_verification_reads_the_shards(shards, monkeypatch):
    asked = []
    monkeypatch.setattr(manifests, "verify_shard", lambda directory, entry, full: asked.append((entry.name, full)))
    ShardReader(shards, "train")
    ShardReader(shards, "train", verify="size")
    ShardReader(shards, "train", verify="full")
    names = ["train/000000", "train/000001"]
    assert sorted(asked) == sorted((name, full) for full in (False, False, True) for name in names)


def test_columns_that_the_loader_plans_with_are_those_of_the_index(shards):
    rewrite(shards, lambda rows: [row.update(text_chars=10 + i, table_chars=20 + i) for i, row in enumerate(rows)])
    index = ShardReader(shards, "train").index(0)
    assert index.text_chars.tolist() == [10, 11, 12, 13] and index.table_chars.tolist() == [20, 21, 22, 23]
    assert index.present == [frozenset({"text", "table", *["image"] * bool(number % 3)}) for number in range(4)]
    assert index.table["id"].to_pylist() == [f"shop/{number}" for number in range(4)]
