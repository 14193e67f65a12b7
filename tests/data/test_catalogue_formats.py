import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_cases import record, write_catalogue

from m5ds.data import m5product
from m5ds.data.catalogue import CatalogueOptions, read_catalogue
from m5ds.data.catalogue_formats import CatalogueError, format_of

OFFICIAL = {
    "1001": {
        "title": "泊泉雅 面膜",
        "label": "泊泉雅",
        "url": "https://img/1001.jpg",
        "video": "https://video/1001.mp4",
        "pv": "品牌#:#泊泉雅#;#规格#:#10片#:#装#;#:#x#;#空#:#",
    },
    "1002": {"title": 'quote " and {brace}', "label": "", "url": "", "video": "", "pv": ""},
    "1003": {"title": "no pv", "label": "Lamps", "url": "https://img/1003.jpg"},
}


def write_official(folder, items=OFFICIAL, indent=None):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images/1001.png").write_bytes(b"picture")
    path = folder / "product5m.json"
    path.write_text(json.dumps(items, ensure_ascii=False, indent=indent), encoding="utf-8")
    return path


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_official_json_is_streamed_whatever_the_block(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(m5product, "_BLOCK", block)
    path = write_official(tmp_path, indent=indent)
    first, second, third = read_catalogue(path, CatalogueOptions(missing_media="absent"))
    assert (first.id, first.title, first.category) == ("1001", "泊泉雅 面膜", ("泊泉雅",))
    assert first.attributes == (("品牌", "泊泉雅"), ("规格", "10片#:#装"))
    assert [file.path for file in first.media["image"]] == ["images/1001.png"]
    assert first.missing == (("video", "videos/1001.mp4"),)
    assert (second.title, second.category, second.missing) == ('quote " and {brace}', (), ())
    assert third.missing == (("image", "images/1003.jpg"),)


def test_official_media_and_features_are_looked_up_by_item_id_in_the_media_folder(tmp_path):
    path = write_official(tmp_path, {"1001": OFFICIAL["1001"]})
    media = tmp_path / "elsewhere"
    for name in ("videos/1001.webm", "audios/1001.mp3", "features/image/1001.npz"):
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).write_bytes(b"x")
    (read,) = read_catalogue(path, CatalogueOptions(media=media))
    assert {name: files[0].path for name, files in read.media.items()} == {
        "image": "features/image/1001.npz",
        "video": "videos/1001.webm",
        "audio": "audios/1001.mp3",
    }


def test_the_official_json_stays_small_in_memory(tmp_path, monkeypatch):
    """What was consumed is forgotten: the buffer never holds more than a block and an item."""
    monkeypatch.setattr(m5product, "_BLOCK", 1000)
    items = {str(number): {"title": "t" * 50} for number in range(2000)}
    path = write_official(tmp_path, items)
    largest = 0
    grow = m5product._Text._grow

    def watched(self):
        nonlocal largest
        grown = grow(self)
        largest = max(largest, len(self._buffer))
        return grown

    monkeypatch.setattr(m5product._Text, "_grow", watched)
    assert sum(1 for _ in read_catalogue(path)) == 2000
    assert largest < 2500 < path.stat().st_size / 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", 'expected "{"'),
        ("", "cut short"),
        ('{"1": {"title": "a"}', "cut short"),
        ('{"1": {"title": "a"', "cut short"),
        ('{"1": [1]}', "must be a JSON object, got list"),
        ('{"1": {"title": 5}}', "title must be a string, got int"),
        ('{"1": {"title": "a"} "2": {}}', 'expected ","'),
        ('{"../1": {"title": "a"}}', "must not hold slashes"),
    ],
)
def test_a_damaged_official_json_is_one_clear_line(tmp_path, text, expected):
    path = tmp_path / "items.json"
    path.write_text(text)
    with pytest.raises(CatalogueError) as error:
        list(read_catalogue(path))
    assert expected in str(error.value) and str(error.value).startswith(f"{path}:1")


def test_an_empty_official_object_is_an_empty_catalogue(tmp_path):
    (tmp_path / "items.json").write_text("{}")
    assert list(read_catalogue(tmp_path / "items.json")) == []


def test_parquet_gives_the_records_of_jsonl(tmp_path):
    items = [record(number, attributes={"Watt": "5", "Colour": f"c{number}"}) for number in range(5)]
    jsonl = write_catalogue(tmp_path, items)
    parquet = tmp_path / "items.parquet"
    pq.write_table(pa.Table.from_pylist(items), parquet)
    from_jsonl, from_parquet = list(read_catalogue(jsonl)), list(read_catalogue(parquet))
    for one, other in zip(from_jsonl, from_parquet, strict=True):
        for name in ("id", "title", "attributes", "category", "media", "group", "i18n"):
            assert getattr(one, name) == getattr(other, name)
    assert from_parquet[2].where == f"{parquet}:row 3"


def test_parquet_maps_and_nulls_are_understood(tmp_path):
    (tmp_path / "media").mkdir()
    schema = pa.schema([("id", pa.string()), ("title", pa.string()), ("attributes", pa.map_(pa.string(), pa.string()))])
    rows = {"id": ["a"], "title": [None], "attributes": [[("Colour", "red")]]}
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "items.parquet")
    (read,) = read_catalogue(tmp_path / "items.parquet")
    assert read.title == "" and read.attributes == (("Colour", "red"),)


def test_a_file_that_is_not_parquet_is_one_clear_line(tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(CatalogueError, match="not readable as Parquet"):
        list(read_catalogue(tmp_path / "items.parquet"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{not json}\n", "not JSON"),
        (b"[1, 2]\n", "must be a JSON object, got list"),
        (b'{"id": "\xff"}\n', "not UTF-8"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}\n", "not JSON"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, expected):
    path = write_catalogue(tmp_path, [record(1)])
    path.write_bytes(path.read_bytes() + b"\n" + line)
    with pytest.raises(CatalogueError) as error:
        list(read_catalogue(path))
    assert str(error.value).startswith(f"{path}:3: ") and expected in str(error.value)


def test_a_byte_order_mark_and_blank_lines_are_harmless(tmp_path):
    path = write_catalogue(tmp_path, [record(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n  \n")
    assert [read.id for read in read_catalogue(path)] == ["shop/1"]


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("m5ds.data.catalogue_formats.MAX_RECORD_BYTES", 1000)
    (tmp_path / "items.jsonl").write_bytes(b'{"id": "' + b"a" * 2000)
    with pytest.raises(CatalogueError, match=":1: longer than 1000 bytes"):
        list(read_catalogue(tmp_path / "items.jsonl"))


def test_an_unknown_suffix_asks_for_the_format(tmp_path):
    with pytest.raises(CatalogueError, match="say which with --format"):
        format_of(tmp_path / "items.csv")
    assert format_of(tmp_path / "items.txt", "jsonl") == "jsonl"


def test_what_is_no_json_is_shown_in_part(tmp_path):
    path = tmp_path / "items.json"
    path.write_text('{"1": {"title": ' + "x" * 200)
    with pytest.raises(CatalogueError) as caught:
        list(m5product.read_m5product(path, tmp_path))
    shown = '{"title": ' + "x" * 50
    assert str(caught.value) == f"{path}:1: not JSON, got {shown!r}; is the file cut short?"
