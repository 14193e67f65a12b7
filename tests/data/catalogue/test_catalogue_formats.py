import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_cases import record, write_catalogue

from m5ds import modality
from m5ds.data.catalogue import m5product
from m5ds.data.catalogue.formats import CatalogueError, format_of, read_jsonl, read_parquet
from m5ds.data.catalogue.records import CatalogueOptions, read_catalogue

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
    lines = path.read_text(encoding="utf-8").splitlines()
    for item in (first, second, third):
        line = next(number for number, text in enumerate(lines, start=1) if f'"{item.id}": {{' in text)
        assert item.where == f"{path}:{line}"


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
        ('{"a/1": {}}', "must not hold slashes"),
        ('{"a\\\\1": {}}', "must not hold slashes"),
        ('{".1": {}}', "start with a dot"),
        ('{"1": {"pv": ["a"]}}', "pv must be a string, got list"),
        ('{"1": {"label": 1}}', "label must be a string, got int"),
        ('{"1": {"url": 1}}', "url must be a string, got int"),
        ('{"1": {"video": 1}}', "video must be a string, got int"),
        ("{12345678: {}}", "an item id must be a string, got 12345678"),
        ('{"1" {}}', 'expected ":", got'),
        ('{"1": {"title": "a"', "is the file cut short?"),
    ],
)
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_a_damaged_official_json_is_one_clear_line(tmp_path, monkeypatch, block, text, expected):
    monkeypatch.setattr(m5product, "_BLOCK", block)
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
    monkeypatch.setattr("m5ds.data.catalogue.formats.MAX_RECORD_BYTES", 1000)
    (tmp_path / "items.jsonl").write_bytes(b'{"id": "' + b"a" * 2000)
    with pytest.raises(CatalogueError, match=":1: longer than 1000 bytes"):
        list(read_catalogue(tmp_path / "items.jsonl"))


def test_an_unknown_suffix_asks_for_the_format(tmp_path):
    with pytest.raises(CatalogueError, match="say which with --format"):
        format_of(tmp_path / "items.csv")
    assert format_of(tmp_path / "items.txt", "jsonl") == "jsonl"
    suffixes = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".json": "m5product"}
    for suffix, name in suffixes.items():
        assert format_of(tmp_path / f"items{suffix}") == name
        assert format_of(tmp_path / f"items{suffix}", "parquet") == "parquet"
    with pytest.raises(CatalogueError, match="must be one of jsonl, parquet, m5product, got 'csv'"):
        format_of(tmp_path / "items.jsonl", "csv")


def test_what_is_no_json_is_shown_in_part(tmp_path):
    path = tmp_path / "items.json"
    path.write_text('{"1": {"title": ' + "x" * 200)
    with pytest.raises(CatalogueError) as caught:
        list(m5product.read_m5product(path, tmp_path))
    shown = '{"title": ' + "x" * 50
    assert str(caught.value) == f"{path}:1: not JSON, got {shown!r}; is the file cut short?"


def test_the_official_file_names_the_line_of_what_is_wrong(tmp_path):
    path = tmp_path / "items.json"
    path.write_text('\n{"1": {\n"title": "a"},\n\n"2": {\n"title": 5}}')
    with pytest.raises(CatalogueError, match=f"^{path}:5: item '2': title must be a string"):
        list(read_catalogue(path))
    path.write_text('{"1": {\n"title": "a"}\n\n"2": {}}')
    with pytest.raises(CatalogueError, match=f"^{path}:4: expected"):
        list(read_catalogue(path))
    path.write_bytes(b'{"1": {"title": "\xff"}}')
    with pytest.raises(CatalogueError, match=f"^{path}:1: not UTF-8"):
        list(read_catalogue(path))


def test_pieces_of_an_official_item_are_stripped_and_empty_ones_dropped(tmp_path):
    item = {"title": "t", "label": " Lamps ", "pv": " a #:# b #;# #:#c#;#d#:# #;#e#;##:##;#f#:#g#:#h"}
    (read,) = read_catalogue(write_official(tmp_path, {"1": item}))
    assert read.attributes == (("a", "b"), ("f", "g#:#h")) and read.category == ("Lamps",)
    (_, raw), *_ = m5product.read_m5product(write_official(tmp_path, {"1": {"label": " "}}), tmp_path)
    assert raw == {"id": "1", "title": None, "attributes": [], "category": None, "features": {}}


def test_the_first_known_suffix_is_taken_and_folders_are_no_files(tmp_path):
    path = write_official(tmp_path, {"1001": {}, "1002": {}, "1003": {"url": "https://img/1003.jpg", "video": ""}})
    (tmp_path / "images/1001.jpeg").write_bytes(b"x")
    (tmp_path / "images/1002.jpg").mkdir()
    (tmp_path / "images/1002.bmp").write_bytes(b"x")
    (tmp_path / "images/1003.txt").write_bytes(b"x")
    found = [raw.get("images") for _, raw in m5product.read_m5product(path, tmp_path)]
    assert found == [["images/1001.jpeg"], ["images/1002.bmp"], ["images/1003.jpg"]]


def test_a_sixth_modality_is_looked_up_as_features(tmp_path):
    heat = modality.Modality(name="heat", number=5, catalogue_field="heat_maps", task="mhm")
    path = write_official(tmp_path, {"1001": {}, "1002": {}})
    for name in ("heat_maps/1001.npy", "features/heat/1002.npz", "heat_maps/1002.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with modality.extended(heat):
        first, second = (raw for _, raw in m5product.read_m5product(path, tmp_path))
    assert first["heat_maps"] == ["heat_maps/1001.npy"] and first["features"] == {}
    assert "heat_maps" not in second and second["features"] == {"heat": "features/heat/1002.npz"}


def test_no_record_may_have_more_than_16_mib(tmp_path):
    """A line of blanks is no record, however long; a byte more is refused before it is looked at."""
    path = tmp_path / "items.jsonl"
    path.write_bytes(b" " * (2**24 - 1) + b"\n")
    assert list(read_catalogue(path)) == []
    path.write_bytes(b" " * 2**24 + b"\n")
    with pytest.raises(CatalogueError, match=":1: longer than 16777216 bytes"):
        list(read_catalogue(path))


@pytest.mark.parametrize(("held", "reads"), [(2**24 - 1, 1), (2**24, 0)])
def test_an_official_item_is_not_read_on_past_16_mi_characters(tmp_path, monkeypatch, held, reads):
    """What is consumed already, five characters here, does not count."""
    asked = []
    text = m5product._Text(tmp_path, SimpleNamespace(read=lambda size: asked.append(size) or ""))
    text._buffer, text._position = "     " + "[" * held, 5
    monkeypatch.setattr(text, "_decode", lambda *_: (_ for _ in ()).throw(ValueError("not whole")))
    with pytest.raises(CatalogueError, match="not JSON"):
        text.value()
    assert len(asked) == reads


def test_a_byte_order_mark_and_any_line_ends_are_harmless_in_the_official_file(tmp_path):
    path = tmp_path / "items.json"
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(b"\xef\xbb\xbf" + end.join(("{", '"1":', "{},", '"2":{}', "}", "")).encode())
        assert [read.where for read in read_catalogue(path)] == [f"{path}:2", f"{path}:4"]


def test_no_file_is_asked_for_by_a_suffix_that_its_folder_lacks(tmp_path, monkeypatch):
    """Trying every suffix for each of millions of items is slow."""
    path = write_official(tmp_path, {str(number): {} for number in range(1000, 1003)})
    asked, listed = [], []
    is_file, iterdir = Path.is_file, Path.iterdir
    monkeypatch.setattr(Path, "is_file", lambda self: asked.append(self.name) or is_file(self))
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self.name) or iterdir(self))
    assert len(list(m5product.read_m5product(path, tmp_path))) == 3
    assert asked == ["1000.png", "1001.png", "1002.png"] and listed == ["images"]


def test_rows_of_parquet_are_numbered_on_past_what_is_read_at_once(tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"id": [str(number) for number in range(600)]}), path)
    wheres = [where for where, _ in read_parquet(path)]
    assert wheres == [f"{path}:row {number}" for number in range(1, 601)]


def test_a_line_that_is_no_json_is_shown_in_part_and_a_mark_belongs_to_the_first_line(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(" " + "x" * 200 + "\n")
    with pytest.raises(CatalogueError, match=f":1: not JSON .*, got '{'x' * 59}'; one JSON object a line"):
        list(read_jsonl(path))
    path.write_bytes(b"{}\n\xef\xbb\xbf{}\n")
    with pytest.raises(CatalogueError, match=":2: not JSON"):
        list(read_jsonl(path))
