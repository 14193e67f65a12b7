import json
import os
from pathlib import Path

import pytest
from catalogue_cases import record, write_catalogue

from m5ds import modality
from m5ds.data.catalogue import (
    ORIGINAL_LANGUAGE,
    CatalogueOptions,
    presence,
    read_catalogue,
    render_value,
)
from m5ds.data.catalogue_formats import CatalogueError


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
        ("attributes", "red", "attributes must be a flat object"),
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
    heat = modality.Modality(name="heat", source="array", catalogue_field="heat_maps", task="mhm")
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
