import json
import os
from pathlib import Path

import pytest
from catalogue_cases import record, write_catalogue

from m5ds import modality
from m5ds.data.catalogue.formats import CatalogueError
from m5ds.data.catalogue.records import (
    ORIGINAL_LANGUAGE,
    CatalogueOptions,
    dumps,
    presence,
    read_catalogue,
    render_value,
)


def read_one(folder: Path, item: dict, **options):
    (read,) = read_catalogue(write_catalogue(folder, [item]), CatalogueOptions(**options))
    return read


def test_a_record_keeps_what_it_says_and_ignores_unknown_fields(tmp_path):
    read = read_one(tmp_path, record(3, source="somewhere", kind="lamp"))
    assert (read.id, read.title, read.group) == ("shop/3", "Lamp 3 台灯", "1")
    assert read.attributes == (("Watt", "3"), ("Colour", "red"))
    assert read.category == ("Home", "Lamps")
    assert {name: [file.path for file in files] for name, files in read.media.items()} == {
        "image": ["media/3.jpg"],
        "video": ["media/3.mp4"],
    }
    assert read.i18n == {"zh": {"title": "台灯 3", "description": "好"}}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("id", None, "id must be a non-empty string"),
        ("id", 7, "id must be a string, got 7"),
        ("id", "  ", "id must be a non-empty string"),
        ("title", 7, "title must be a string, got 7"),
        ("title", "\ud800", "title holds a lone surrogate"),
        ("description", ["a"], "description must be a string"),
        ("category", "Home", "category must be a list of strings"),
        ("category", ["Home", ""], "category must not hold an empty name"),
        ("category", ["Home", 3], "category must be a string, got 3"),
        ("category", ["Home", "Bags / Cases"], "category must not hold ' / ', which separates its levels"),
        ("attributes", "red", "attributes must be a flat object"),
        ("attributes", 5, "attributes must be a flat object"),
        ("attributes", [["Colour"]], "attributes must be a flat object"),
        ("attributes", [["Colour", "red", "blue"]], "attributes must be a flat object"),
        ("attributes", [["Watt", 5], {"key": "Colour"}], "attributes must be a flat object"),
        ("attributes", [{"key": "Colour", "value": "red", "unit": ""}], "attributes must be a flat object"),
        ("attributes", [[3, "x"]], "attributes: a key must be a string, got 3"),
        ("attributes", {"Size": ["S", ["M"]]}, "attributes.Size must be a string, number, boolean or a list"),
        ("attributes", {"Size": ["S", {}]}, "attributes.Size must be a string, number, boolean or a list"),
        ("attributes", {"Size": [float("inf")]}, "attributes.Size must be a finite number"),
        ("attributes", {"Size": "\ud800"}, "attributes.Size holds a lone surrogate"),
        ("attributes", {"Size": {"w": 1}}, "attributes.Size must be a string, number, boolean or a list"),
        ("attributes", {"Size": float("nan")}, "attributes.Size must be a finite number"),
        ("attributes", {" ": "x"}, "attributes: an empty key"),
        ("images", "media/0.jpg", "images must be a list of paths"),
        ("images", [3], "images must be a string, got 3"),
        ("images", [""], "images lists an empty path"),
        ("images", ["/etc/passwd"], "stay inside it"),
        ("images", ["media/../../secret.jpg"], "stay inside it"),
        ("images", ["media\\0.jpg"], "stay inside it"),
        ("images", ["media/a\0.jpg"], "stay inside it"),
        ("images", ["https://shop/0.jpg"], "download it"),
        ("features", {"image": "media/0.jpg"}, "features.image must be a .npy or .npz file"),
        ("features", {"text": "media/0.npy"}, "features names 'text'"),
        ("features", ["a"], "features must map a modality"),
        ("i18n", {"zh": "标题"}, "i18n must map a language"),
        ("i18n", ["zh"], "i18n must map a language"),
        ("i18n", {"zh": {"title": "a"}, "de": 3}, "i18n must map a language"),
        ("i18n", {"zh": {"description": 3}}, "i18n.zh.description must be a string"),
        ("category", {"Home": "Lamps"}, "category must be a list of strings, top first, got {'Home': 'Lamps'}"),
        ("share_group", ["a"], "share_group must be a string or an integer"),
        ("features", {"image": 3}, "features.image must be a string, got 3"),
        ("features", {"smell": "media/0.npy"}, "the modalities with files are image, video, audio"),
        ("images", ["media/0.jpg", "media"], "lists 'media', which is no file"),
        ("images", ["media/../0.jpg"], "stay inside it"),
        ("i18n", {"zh": {"title": 3}}, "i18n.zh.title must be a string"),
        ("share_group", 1.5, "share_group must be a string or an integer"),
        ("share_group", True, "share_group must be a string or an integer"),
        ("leaky_attributes", "Colour", "leaky_attributes must be an object or a list"),
    ],
)
def test_a_wrong_field_is_named_with_file_line_and_value(tmp_path, field, value, expected):
    path = write_catalogue(tmp_path, [record(0), record(1)])
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + json.dumps({**record(1), field: value}) + "\n")
    with pytest.raises(CatalogueError) as error:
        list(read_catalogue(path))
    message = str(error.value)
    assert message.startswith(f"{path}:2: ") and expected in message and "\n" not in message


def test_attributes_that_would_give_the_label_away_never_enter_the_table(tmp_path):
    item = record(1, leaky_attributes={"Colour": "red", "group": "lamps"})
    assert read_one(tmp_path, item).attributes == (("Watt", "1"),)
    for leaky in (["Colour", 3, None], ["Colour"]):
        assert read_one(tmp_path, record(1, leaky_attributes=leaky)).attributes == (("Watt", "1"),)
    for harmless in ([], {}, None, ["Size"]):
        assert len(read_one(tmp_path, record(1, leaky_attributes=harmless)).attributes) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (8, "8"),
        (8.0, "8"),
        (-0.0, "0"),
        (0.1 + 0.2, "0.3"),
        (17754000, "17754000"),
        (17754000.0, "17754000"),
        (True, "true"),
        (" red ", "red"),
        (["red", 2.0, None], "red, 2"),
        (["a", "", " ", "b", False], "a, b, false"),
        ([], ""),
        (False, "false"),
        (0, "0"),
        (-3, "-3"),
        (-3.0, "-3"),
        (0.80, "0.8"),
        (1e20, "1e+20"),
        (1 / 3, "0.333333333333333"),
        (None, None),
    ],
)
def test_equal_numbers_are_rendered_alike(value, expected):
    assert render_value(value) == expected


def test_empty_attribute_values_say_nothing_and_are_left_out(tmp_path):
    assert read_one(tmp_path, record(1, attributes={"a": "", "b": None, "c": "x"})).attributes == (("c", "x"),)


def test_attributes_may_be_pairs_which_keeps_repeated_keys(tmp_path):
    pairs = [["Colour", "red"], {"key": "Colour", "value": "blue"}]
    assert read_one(tmp_path, record(1, attributes=pairs)).attributes == (("Colour", "red"), ("Colour", "blue"))


def test_a_missing_media_file_is_an_error_that_names_the_way_out(tmp_path):
    path = write_catalogue(tmp_path, [record(3)])
    (tmp_path / "media/3.mp4").unlink()
    with pytest.raises(CatalogueError, match=r":1: .*videos lists 'media/3.mp4'.*--missing-media absent"):
        list(read_catalogue(path))


def test_missing_media_becomes_a_recorded_absence_when_asked(tmp_path):
    path = write_catalogue(tmp_path, [record(3)])
    (tmp_path / "media/3.mp4").unlink()
    (read,) = read_catalogue(path, CatalogueOptions(missing_media="absent"))
    assert set(read.media) == {"image"} and read.missing == (("video", "media/3.mp4"),)


def test_a_fifo_or_a_folder_is_no_media_file(tmp_path):
    """Reading a FIFO would block the build for ever."""
    path = write_catalogue(tmp_path, [record(1)])
    (tmp_path / "media/1.jpg").unlink()
    os.mkfifo(tmp_path / "media/1.jpg")
    with pytest.raises(CatalogueError, match="which is no file"):
        list(read_catalogue(path))


def test_precomputed_features_stand_in_for_the_raw_files(tmp_path):
    path = write_catalogue(tmp_path, [record(1, images=["gone.jpg"], features={"image": "media/1.npz"})])
    (tmp_path / "gone.jpg").unlink()
    (tmp_path / "media/1.npz").write_bytes(b"features")
    (read,) = read_catalogue(path)
    assert [file.path for file in read.media["image"]] == ["media/1.npz"]


def test_another_language_replaces_title_and_description_and_the_original_is_kept(tmp_path):
    read = read_one(tmp_path, record(1), language="zh")
    assert (read.title, read.description) == ("台灯 1", "好")
    assert read.i18n[ORIGINAL_LANGUAGE] == {"title": "Lamp 1 台灯", "description": ""}
    assert read_one(tmp_path, record(1), language="de").title == "Lamp 1 台灯"


def test_a_product_without_a_group_is_a_group_of_its_own(tmp_path):
    item = record(1)
    del item["share_group"]
    read = read_one(tmp_path, item)
    assert read.group == "id:shop/1" and not read.has_group


def test_a_sixth_modality_of_the_table_is_read_from_its_own_field(tmp_path):
    heat = modality.Modality(name="heat", number=5, catalogue_field="heat_maps", task="mhm")
    path = write_catalogue(tmp_path, [record(1, heat_maps=["media/1.npy"])])
    (tmp_path / "media/1.npy").write_bytes(b"array")
    with modality.extended(heat):
        (read,) = read_catalogue(path)
        assert presence(read.media, read.title, read.description, read.attributes) == ["image", "text", "table", "heat"]


def test_presence_is_declared_by_content_in_table_order():
    assert presence({}, "", "", ()) == []
    assert presence({"audio": (), "image": ()}, "", "words", (("a", "b"),)) == ["image", "text", "table", "audio"]


def test_a_catalogue_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CatalogueError, match="no such catalogue file"):
        list(read_catalogue(tmp_path / "items.jsonl"))
    path = write_catalogue(tmp_path, [record(1)])
    with pytest.raises(CatalogueError, match="no such media folder"):
        list(read_catalogue(path, CatalogueOptions(media=tmp_path / "nowhere")))


def test_a_long_value_is_shown_in_at_most_eighty_characters(tmp_path):
    for length, shown in ((78, repr("x" * 78)), (79, repr("x" * 79)[:77] + "...")):
        with pytest.raises(CatalogueError) as caught:
            read_one(tmp_path, record(1, category="x" * length))
        assert str(caught.value).endswith(f", got {shown}") and len(shown) == 80


def test_only_whole_translations_count_and_what_one_lacks_stays_in_the_original(tmp_path):
    i18n = {"zh": {"title": None, "description": " 好 ", "brand": 3}, "de": None, "fr": {}}
    item = record(1, i18n=i18n, description="good")
    assert read_one(tmp_path, item).i18n == {"zh": {"description": "好"}}
    read = read_one(tmp_path, item, language="zh")
    assert (read.title, read.description) == ("Lamp 1 台灯", "好")
    assert read.i18n == {"zh": {"description": "好"}, "original": {"title": "Lamp 1 台灯", "description": "good"}}
    title_only = read_one(tmp_path, record(1, i18n={"zh": {"title": "灯"}}, description="good"), language="zh")
    assert (title_only.title, title_only.description) == ("灯", "good")
    for language in (None, "de"):
        assert read_one(tmp_path, item, language=language).title == "Lamp 1 台灯"


def test_strings_are_stripped_and_what_is_null_is_empty(tmp_path):
    item = record(1, id=" a ", title=" b ", description=None, category=[" c "], attributes={" k ": " v "})
    item |= {"images": None, "videos": None, "audios": None, "i18n": None, "share_group": " g ", "features": None}
    read = read_one(tmp_path, item)
    assert (read.id, read.title, read.description, read.category) == ("a", "b", "", ("c",))
    assert read.attributes == (("k", "v"),) and (read.group, read.has_group) == ("g", True)
    assert (read.media, read.missing, read.i18n) == ({}, (), {})
    assert read_one(tmp_path, record(1, category=None, attributes=None)).category == ()


def test_a_group_is_named_by_the_field_of_the_option(tmp_path):
    read = read_one(tmp_path, record(1, shelf=0), group_key="shelf")
    assert (read.group, read.has_group) == ("0", True)
    read = read_one(tmp_path, record(1, shelf=None), group_key="shelf")
    assert (read.group, read.has_group) == ("id:shop/1", False)


def test_files_are_listed_in_order_with_size_and_time(tmp_path):
    """A build that was cut off goes on only where neither has changed."""
    path = write_catalogue(tmp_path, [record(1, images=["media/b.jpg", "media/a.jpg"], audios=["media/c.wav"])])
    (tmp_path / "media/a.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "media/a.jpg", ns=(5, 1_700_000_000_123_456_789))
    (read,) = read_catalogue(path)
    first, second = read.media["image"]
    assert (first.path, first.size) == ("media/b.jpg", 40 * len("bytes of media/b.jpg"))
    assert (second.path, second.size, second.mtime_ns) == ("media/a.jpg", 5, 1_700_000_000_123_456_789)
    assert list(read.media) == ["image", "audio"]


def test_what_is_there_is_kept_beside_what_is_missing(tmp_path):
    features = {"audio": "media/gone.npy", "video": None}
    path = write_catalogue(
        tmp_path, [record(3, images=["media/a.jpg", "media/b.jpg", "media/c.jpg"], features=features)]
    )
    (tmp_path / "media/b.jpg").unlink()
    with pytest.raises(CatalogueError, match="images lists 'media/b.jpg', which is no file in"):
        list(read_catalogue(path))
    (read,) = read_catalogue(path, CatalogueOptions(missing_media="absent"))
    assert {name: [file.path for file in files] for name, files in read.media.items()} == {
        "image": ["media/a.jpg", "media/c.jpg"],
        "video": ["media/3.mp4"],
    }
    assert read.missing == (("image", "media/b.jpg"), ("audio", "media/gone.npy"))


def test_media_may_lie_elsewhere_and_the_format_be_named(tmp_path):
    path = write_catalogue(tmp_path / "c", [record(1)])
    path.rename(tmp_path / "items.txt")
    (read,) = read_catalogue(tmp_path / "items.txt", CatalogueOptions(format="jsonl", media=tmp_path / "c"))
    assert read.where == f"{tmp_path}/items.txt:1" and list(read.media) == ["image"]


def test_what_to_do_with_missing_media_is_one_of_two_words():
    with pytest.raises(CatalogueError, match="missing_media must be error or absent, got 'skip'"):
        CatalogueOptions(missing_media="skip")
    assert (CatalogueOptions().missing_media, CatalogueOptions().group_key) == ("error", "share_group")
    assert dumps({"a": ["灯", 1]}) == '{"a":["灯",1]}'
