"""Byte-equal media in several splits: told by every tool, and kept together by --group-by-content."""

import hashlib
import itertools
import json
import logging
import random
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from catalogue_cases import files_below
from shard_cases import edit_manifest, resign

from m5ds.data.catalogue.records import CatalogueError
from m5ds.data.shards import content_groups, shared_media
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.lint import lint_shards
from m5ds.data.shards.manifest import read_manifest
from m5ds.data.shards.shared_media import content_hash, find_shared_media

FIELDS = {"image": "images", "video": "videos", "audio": "audios"}


def write(folder, products):
    """A catalogue from id -> {"image": [bytes, ...], "group": ...}; every file has a name of its own."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, held) in enumerate(products.items()):
        item = {"id": name, "title": name, **{field: [] for field in FIELDS.values()}}
        if "group" in held:
            item["share_group"] = held["group"]
        for modality, field in FIELDS.items():
            for file, data in enumerate(held.get(modality, [])):
                path = f"media/{number}-{modality}-{file}.bin"
                (folder / path).write_bytes(data)
                item[field].append(path)
        lines.append(json.dumps(item))
    (folder / "items.jsonl").write_text("\n".join(lines))
    return folder / "items.jsonl"


def build(folder, products, **options):
    catalogue = write(folder / "catalogue", products)
    return build_shards(catalogue, folder / "shards", BuildOptions(shard_products=24, **options)), folder / "shards"


def contents(directory):
    """sha256 -> {(split, product id, modality)}, read out of the tars by another way than the code's."""
    found = {}
    for path in sorted(directory.glob("*/*.tar")):
        with tarfile.open(path) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
        ids = {name.split(".")[0]: json.loads(data)["id"] for name, data in members.items() if name.endswith(".json")}
        for name, data in members.items():
            if not name.endswith(".json") and data:
                place = path.parent.name, ids[name.split(".")[0]], name.split(".")[1]
                found.setdefault(hashlib.sha256(data).hexdigest(), set()).add(place)
    return found


def split_of(directory):
    return {name: split for places in ids_by_split(directory).items() for split, names in [places] for name in names}


def ids_by_split(directory):
    return {
        split: [
            row
            for path in sorted((directory / split).glob("*.parquet"))
            for row in pq.read_table(path)["id"].to_pylist()
        ]
        for split in read_manifest(str(directory)).splits
    }


def random_products(seed, count=80, pool=20):
    """Products with files out of a small pool, some of equal sizes, some empty, a few in groups."""
    draw = random.Random(seed)
    files = [bytes([number]) * draw.choice([1, 3, 3, 900]) for number in range(pool)] + [b""]
    products = {}
    for number in range(count):
        held = {m: draw.sample(files, draw.choice([0, 1, 1, 2])) for m in FIELDS if draw.random() < 0.5}
        held = {m: [data if draw.random() < 0.7 else b"own %d %s" % (number, m.encode()) for data in files_]
                for m, files_ in held.items()}  # fmt: skip
        if draw.random() < 0.2:
            held["group"] = f"g{draw.randrange(6)}"
        products[f"p{number}"] = held
    return products


def without_hashes(directory):
    """As a builder before the column wrote them."""
    for path in directory.glob("*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["member_hashes"]), path)
        resign(directory, f"{path.parent.name}/{path.name.split('.')[0]}")
    return directory


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("limit", [3, 100])
def test_the_report_counts_what_the_tars_hold(tmp_path, seed, hashed, limit):
    _, shards = build(tmp_path, random_products(seed), seed=seed)
    if not hashed:
        without_hashes(shards)
    shared = {digest: places for digest, places in contents(shards).items() if len({split for split, *_ in places}) > 1}
    assert len(shared) > 5
    products = {digest: {name for _, name, _ in places} for digest, places in shared.items()}
    told = {digest: places for digest, places in shared.items() if len(products[digest]) <= limit}
    found = find_shared_media(str(shards), read_manifest(str(shards)), placeholder_products=limit, most=3)
    assert found.num_contents == len(told)
    assert found.num_placeholders == len(shared) - len(told)
    assert found.num_products == len(set().union(*(products[digest] for digest in told)))
    for modality in FIELDS:
        expected = sum(any(kind == modality for *_, kind in places) for places in told.values())
        assert found.by_modality.get(modality, 0) == expected, modality
    order = ["train", "validation", "test"]
    for size in (2, 3):
        for splits in itertools.combinations(order, size):
            expected = sum({split for split, *_ in places} == set(splits) for places in told.values())
            assert found.by_splits.get("+".join(splits), 0) == expected, splits
    assert len(found.examples) == min(3, len(told)) and len(found.placeholders) == min(3, found.num_placeholders)
    for example in (*found.examples, *found.placeholders):
        assert (example.num_products > limit) == (example in found.placeholders)
        split, name, member = example.places[0]
        (places,) = (
            places
            for digest, places in shared.items()
            if (split, name, member.split(".")[1]) in places
            and hashlib.sha256(member_bytes(shards, split, member)).hexdigest() == digest
        )
        assert {place[0] for place in example.places} == {place[0] for place in places}
        assert {(s, n, m.split(".")[1]) for s, n, m in example.places} <= places
    placeholders = [example.num_products for example in found.placeholders]
    assert placeholders == sorted(placeholders, reverse=True)


def member_bytes(directory, split, name):
    for path in (directory / split).glob("*.tar"):
        with tarfile.open(path) as archive:
            if name in archive.getnames():
                return archive.extractfile(name).read()
    raise AssertionError(name)


def test_a_content_within_one_split_or_one_product_is_not_told(tmp_path):
    products = {f"p{n}": {"image": [b"twice", b"twice"] if n == 0 else [b"own %d" % n]} for n in range(30)}
    manifest, shards = build(tmp_path, products)
    found = find_shared_media(str(shards), manifest)
    assert (found.num_contents, found.num_placeholders, list(found.lines())) == (0, 0, [])
    _, shards = build(tmp_path / "one", {f"p{n}": {"image": [b"all"]} for n in range(30)}, ratios=(1.0, 0.0, 0.0))
    assert find_shared_media(str(shards), read_manifest(str(shards))).num_contents == 0


def test_shards_without_media_have_nothing_to_tell(tmp_path):
    manifest, shards = build(tmp_path, {f"p{n}": {} for n in range(30)})
    assert list(find_shared_media(str(shards), manifest).lines()) == []


def test_the_index_holds_the_hash_of_every_member(tmp_path):
    _, shards = build(tmp_path, random_products(0))
    for path in shards.glob("*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            with tarfile.open(path.with_name(path.name.replace(".index.parquet", ".tar"))) as archive:
                data = [archive.extractfile(member["name"]).read() for member in row["members"]]
            assert row["member_hashes"] == [hashlib.blake2b(one, digest_size=16).digest() for one in data]


def test_of_old_shards_only_members_of_a_shared_size_are_read(tmp_path, monkeypatch):
    products = {f"p{n}": {"image": [b"x" * (10 + n)]} for n in range(30)} | {"q": {"image": [b"y" * 12]}}
    manifest, shards = build(tmp_path, products)
    without_hashes(shards)
    read = []
    monkeypatch.setattr(shared_media, "content_hash", lambda data: read.append(data) or content_hash(data))
    assert find_shared_media(str(shards), read_manifest(str(shards))).num_contents == 0
    assert sorted(read) == [b"x" * 12, b"y" * 12]
    assert not list(lint_shards(str(shards)))


@pytest.mark.parametrize("seed", range(3))
def test_grouped_products_share_no_content_across_splits_whatever_their_order(tmp_path, seed):
    products = random_products(seed, count=120, pool=120)
    manifest, shards = build(tmp_path, products, seed=seed, group_by_content=True, placeholder_products=4)
    crossing = {
        digest: {name for _, name, _ in places}
        for digest, places in contents(shards).items()
        if len({split for split, *_ in places}) > 1
    }
    assert all(len(names) > 4 for names in crossing.values())
    split = split_of(shards)
    for one, other in itertools.combinations(products, 2):
        if "group" in products[one] and products[one]["group"] == products[other].get("group"):
            assert split[one] == split[other]
    mixed = list(products)
    random.Random(seed).shuffle(mixed)
    options = {"seed": seed, "group_by_content": True, "placeholder_products": 4}
    _, again = build(tmp_path / "mixed", {name: products[name] for name in mixed}, **options)
    assert ids_by_split(again) == ids_by_split(shards)
    assert not list(lint_shards(str(shards)))
    assert manifest.options["group_by_content"] is True and manifest.options["placeholder_products"] == 4


def test_two_grouped_builds_give_the_same_bytes_and_nothing_shared_changes_nothing(tmp_path):
    products = random_products(1)
    _, first = build(tmp_path / "a", products, group_by_content=True)
    _, second = build(tmp_path / "b", products, group_by_content=True)
    assert files_below(first / "train") == files_below(second / "train")
    own = {name: {"image": [name.encode()]} for name in products}
    _, plain = build(tmp_path / "c", own)
    _, grouped = build(tmp_path / "d", own, group_by_content=True)
    assert ids_by_split(plain) == ids_by_split(grouped)


def linked(groups, files, **options):
    """Groups after uniting, as a partition of product numbers; `files`: each product's contents."""
    media, folder = content_groups.MediaSizes(), options.pop("folder")
    paths = {}
    for product, held in enumerate(files):
        paths[product] = []
        for number, data in enumerate(held):
            paths[product].append(folder / f"{product}-{number}")
            paths[product][-1].write_bytes(data)
        media.add(product, (len(data) for data in held))
    found = content_groups.group_by_content(
        np.array(groups, np.uint64), media, paths.__getitem__, placeholder_products=options.get("limit", 100)
    )
    return sorted(tuple(np.flatnonzero(found == value).tolist()) for value in set(found.tolist())), found


BIG = b"z" * 70_000


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ([[b"a"], [b"a"], [b"b"]], [(0, 1), (2,)]),
        ([[b"a"], [b"a", b"b"], [b"b", b"c"], [b"c"]], [(0, 1, 2, 3)]),
        ([[b"c"], [b"b", b"c"], [b"a"], [b"b", b"a"]], [(0, 1, 2, 3)]),
        ([[b"a"], [b"b"], [b"c"]], [(0,), (1,), (2,)]),
        ([[b""], [b""], [b"a"]], [(0,), (1,), (2,)]),
        ([[BIG + b"1"], [BIG + b"2"], [BIG + b"1"]], [(0, 2), (1,)]),
        ([[BIG], [BIG + b"z"], [BIG]], [(0, 2), (1,)]),
        ([[b"z" * 65536], [b"z" * 65537], [b"z" * 65536]], [(0, 2), (1,)]),
        ([[b"a", b"a"], [b"b"], []], [(0,), (1,), (2,)]),
    ],
)
def test_exactly_the_products_of_equal_bytes_hang_together(tmp_path, files, parts):
    assert linked(range(10, 10 + len(files)), files, folder=tmp_path)[0] == parts


def test_groups_of_the_catalogue_are_united_whole_and_keep_their_hash_where_nothing_is_shared(tmp_path):
    groups = [7, 7, 9, 9, 12]
    parts, found = linked(groups, [[b"a"], [b"b"], [b"b"], [b"c"], [b"d"]], folder=tmp_path)
    assert parts == [(0, 1, 2, 3), (4,)] and found.tolist() == [7 ^ 9] * 4 + [12]


@pytest.mark.parametrize(("limit", "parts"), [(3, [(0, 1, 2)]), (2, [(0,), (1,), (2,)])])
def test_a_content_of_more_products_than_the_limit_groups_nothing(tmp_path, limit, parts):
    assert linked([1, 2, 3], [[b"a"], [b"a"], [b"a"]], folder=tmp_path, limit=limit)[0] == parts


def test_files_of_a_size_of_their_own_are_never_opened_and_heads_decide_before_the_rest(tmp_path, monkeypatch):
    opened = []
    real = content_groups._hash
    monkeypatch.setattr(
        content_groups, "_hash", lambda path, size, limit: opened.append((path.name, limit)) or real(path, size, limit)
    )
    other = b"y" + BIG[1:]
    linked([1, 2, 3, 4], [[b"own"], [BIG, b"ab"], [BIG, b"cd"], [other]], folder=tmp_path)
    assert sorted(opened, key=str) == sorted(
        [
            *((name, 65536) for name in ("1-0", "1-1", "2-0", "2-1", "3-0")),
            ("1-0", None),
            ("2-0", None),
        ],
        key=str,
    )


def test_a_file_that_has_gone_is_a_users_error(tmp_path):
    media = content_groups.MediaSizes()
    for product in (0, 1):
        media.add(product, [3])
    with pytest.raises(CatalogueError, match="gone: cannot be read for --group-by-content"):
        content_groups.group_by_content(
            np.array([1, 2], np.uint64), media, lambda _: [tmp_path / "gone"], placeholder_products=9
        )


def test_a_chain_through_much_of_the_catalogue_is_warned_of(tmp_path, caplog):
    products = {f"p{n}": {"image": [b"link %02d" % n, b"link %02d" % (n + 1)] if n < 20 else []} for n in range(60)}
    with caplog.at_level(logging.WARNING):
        build(tmp_path, products, group_by_content=True)
    assert "20 of 60 products hang together by media" in caplog.text


def test_a_broken_promise_is_a_fault_and_an_unmade_one_is_not(tmp_path):
    _, shards = build(tmp_path, random_products(0))
    assert not list(lint_shards(str(shards)))
    edit_manifest(shards, lambda tree: tree["options"].update(group_by_content=True))
    (fault,) = lint_shards(str(shards))
    assert "manifest.json: group_by_content, but" in fault and "byte-equal media in several splits" in fault
    assert " = " in fault and "\n" not in fault


def test_placeholder_products_must_be_positive():
    with pytest.raises(ValueError, match="placeholder_products must be at least 1, got 0"):
        BuildOptions(placeholder_products=0)
