"""What a record may say, at its boundaries: kinds of values, lists with one bad entry, defaults, what is kept."""

import pytest
from catalogue_cases import record, write_catalogue

from m5ds.data.catalogue.formats import CatalogueError
from m5ds.data.catalogue.records import CatalogueOptions, dumps, media_root, read_catalogue, render_value


def read_one(folder, item, **options):
    (read,) = read_catalogue(write_catalogue(folder, [item]), CatalogueOptions(**options))
    return read


def refused(folder, message: str, **changes) -> None:
    with pytest.raises(CatalogueError, match=message):
        read_one(folder, record(1, **changes))


def test_json_is_compact_and_keeps_its_characters():
    assert dumps({"a": [1, "灯"], "b": None}) == '{"a":[1,"灯"],"b":null}'


def test_one_bad_entry_among_good_ones_is_refused(tmp_path):
    refused(tmp_path, "i18n must map", i18n={"zh": {"title": "a"}, "de": "Lampe"})
    refused(tmp_path, "i18n must map", i18n=["zh"])
    refused(tmp_path, "category must not hold an empty name", category=["", "Lamps"])
    refused(tmp_path, "category must be a list", category={"a": 1})
    refused(tmp_path, "images lists an empty path", images=[" ", "media/1.jpg"])
    refused(tmp_path, "attributes must be a flat object", attributes=[["a", "b"], ["c"]])
    refused(tmp_path, "attributes must be a flat object", attributes=[["a", "b", "c"]])
    refused(tmp_path, "attributes must be a flat object", attributes=[{"key": "a"}])
    refused(tmp_path, "attributes must be a flat object", attributes=[{"key": "a", "value": 1, "unit": "W"}])
    refused(tmp_path, "attributes must be a flat object", attributes=7)
    refused(tmp_path, "a key must be a string, got 3", attributes=[[3, "b"]])
    refused(tmp_path, "leaky_attributes must be", leaky_attributes=7)
    refused(tmp_path, "features must map", features="a.npy")
    refused(tmp_path, "features.image must be a string", features={"image": 7})


def test_what_is_empty_or_null_is_left_out(tmp_path):
    empty = {"title": None, "description": None, "category": None, "attributes": None, "images": None, "videos": None}
    read = read_one(tmp_path, record(1, **empty, i18n=None, features=None, share_group=None, leaky_attributes=None))
    assert (read.title, read.description, read.category, read.attributes, read.media, read.i18n) == (
        *("", "", (), ()),
        {},
        {},
    )
    assert read.group == "id:shop/1" and not read.has_group and read.missing == ()
    read = read_one(tmp_path, record(1, i18n={"zh": {"title": "a", "description": None}, "de": {}, "fr": None}))
    assert read.i18n == {"zh": {"title": "a"}}
    read = read_one(tmp_path, record(1, features={"image": None}, leaky_attributes=["Watt", 3]))
    assert [file.path for file in read.media["image"]] == ["media/1.jpg"] and read.attributes == (("Colour", "red"),)


def test_a_language_without_a_field_keeps_the_original_one(tmp_path):
    read = read_one(tmp_path, record(1, description="good", i18n={"zh": {"title": " 灯 "}}), language="zh")
    assert (read.title, read.description) == ("灯", "good")
    read = read_one(tmp_path, record(1, i18n={"zh": {"description": "好"}}), language="zh")
    assert (read.title, read.description) == ("Lamp 1 台灯", "好")


@pytest.mark.parametrize(("group", "expected"), [(0, "0"), (17, "17"), (" a ", "a"), ("", "")])
def test_a_group_is_a_string_or_a_number_of_any_field(tmp_path, group, expected):
    read = read_one(tmp_path, record(1, family=group), group_key="family")
    assert read.group == expected and read.has_group


def test_words_are_stripped_and_files_described(tmp_path):
    read = read_one(tmp_path, record(1, id=" a ", title=" b ", category=[" c "], attributes={" d ": " e "}))
    assert (read.id, read.title, read.category, read.attributes) == ("a", "b", ("c",), (("d", "e"),))
    status = (tmp_path / "media/1.jpg").stat()
    (file,) = read.media["image"]
    assert (file.path, file.size, file.mtime_ns) == ("media/1.jpg", status.st_size, status.st_mtime_ns)
    assert read.where == f"{tmp_path / 'items.jsonl'}:1"


@pytest.mark.parametrize(("length", "shown"), [(78, 80), (79, 80)])
def test_long_values_are_shown_cut(tmp_path, length, shown):
    """80 characters with their quotes at most."""
    with pytest.raises(CatalogueError) as error:
        read_one(tmp_path, record(1, category="x" * length))
    found = str(error.value).partition("got ")[2]
    assert len(found) == shown and found.endswith("...") is (length == 79)


def test_values_without_a_plain_rendering_are_refused():
    assert render_value(False) == "false" and render_value([True, "", " a", 3]) == "true, a, 3"
    assert render_value(1e15) == "1e+15" and render_value(0.1) == "0.1" and render_value([]) == ""
    for value in (float("inf"), {}, [["a"]], [{"a": 1}, "b"], ["b", ["a"]], object()):
        with pytest.raises(ValueError, match="must be"):
            render_value(value)


def test_media_lie_beside_the_catalogue_unless_a_folder_is_named(tmp_path):
    path = write_catalogue(tmp_path, [record(1)])
    assert media_root(path, CatalogueOptions()) == tmp_path
    other = tmp_path / "other"
    (other / "media").mkdir(parents=True)
    (other / "media/1.jpg").write_bytes(b"12345")
    (read,) = read_catalogue(path, CatalogueOptions(media=other))
    assert read.media["image"][0].size == 5
    with pytest.raises(CatalogueError, match="missing_media must be error or absent, got 'skip'"):
        CatalogueOptions(missing_media="skip")


def test_a_missing_file_among_others_leaves_the_others(tmp_path):
    path = write_catalogue(tmp_path, [record(1, images=["media/1.jpg", "media/2.jpg", "media/3.jpg"])])
    (tmp_path / "media/2.jpg").unlink()
    (read,) = read_catalogue(path, CatalogueOptions(missing_media="absent"))
    assert [file.path for file in read.media["image"]] == ["media/1.jpg", "media/3.jpg"]
    assert read.missing == (("image", "media/2.jpg"),)
