"""One table, in the paper's order; nothing else knows how many modalities there are."""

import pickle
from dataclasses import replace

import pytest

from m5ds import modality
from m5ds.modality import Modality


def test_the_order_is_the_papers_chain():
    assert modality.names() == ("image", "text", "table", "video", "audio")


def test_chosen_names_come_back_in_table_order():
    assert modality.in_table_order(["audio", "image"]) == ("image", "audio")
    with pytest.raises(ValueError, match="unknown modality 'scent'"):
        modality.in_table_order(["scent"])
    with pytest.raises(ValueError, match="must not repeat"):
        modality.in_table_order(["text", "text"])


def test_an_extension_lasts_as_long_as_its_block():
    scent = Modality(name="scent", number=5, catalogue_field="scents", task="msp")
    with modality.extended(scent):
        assert modality.names()[-1] == "scent"
        with pytest.raises(ValueError, match="already"), modality.extended(scent):
            pass
    assert "scent" not in modality.names()


def test_a_row_says_what_a_modality_is_declared_by_and_what_its_task_is_called():
    rows = [(row.name, row.catalogue_field, row.task, row.lists_files) for row in modality.table()]
    assert rows == [
        ("image", "images", "mrp", True),
        ("text", "title", "mlm", False),
        ("table", "attributes", "mem", False),
        ("video", "videos", "mfp", True),
        ("audio", "audios", "mam", True),
    ]
    assert modality.get("video") is modality.table()[3]


def test_the_numbers_that_key_every_draw_never_change():
    """A modality's masks, crops and replacements hang on it; checkpoints resume with the same draws for ever."""
    numbers = {row.name: row.number for row in modality.table()}
    assert numbers == {"image": 0, "text": 1, "table": 2, "video": 3, "audio": 4}


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (4, "modality 'scent': number 4 is audio's; choose one that is free"),
        (256, "modality 'scent': number must lie in 0 to 255, got 256"),
        (-1, "number must lie in 0 to 255, got -1"),
    ],
)
def test_a_number_that_is_taken_or_no_byte_is_refused(number, message):
    scent = Modality(name="scent", number=number, catalogue_field="scents", task="msp")
    with pytest.raises(ValueError, match=message):
        modality.register(scent)
    with pytest.raises(ValueError, match=message), modality.extended(replace(scent, name="scent")):
        pass
    assert len(modality.table()) == 5


def test_what_a_record_holds_itself_and_what_lies_in_files():
    pairs = (("size", "3"),)
    held = {row.name: row.content("title", "words", pairs) for row in modality.table() if row.content is not None}
    assert held == {"text": "title", "table": pairs}
    text, table = modality.get("text").content, modality.get("table").content
    assert text("", "words", ()) == "words" and not text("", "", pairs) and not table("title", "words", ())
    assert pickle.loads(pickle.dumps(modality.table())) == modality.table()


def test_an_extension_ends_with_an_error_in_its_block():
    scent = Modality(name="scent", number=5, catalogue_field="scents", task="msp")
    with pytest.raises(RuntimeError), modality.extended(scent):
        raise RuntimeError
    assert modality.names()[-1] == "audio"


def test_several_modalities_may_be_added_and_each_only_once():
    one, two = (
        Modality(name=name, number=number, catalogue_field=f"{name}s", task=name)
        for name, number in (("heat", 7), ("scent", 5))
    )
    with modality.extended(one, two):
        assert modality.names()[5:] == ("heat", "scent") and len(modality.table()) == 7
        assert modality.in_table_order(("scent", "image")) == ("image", "scent")
        with modality.extended(Modality(name="touch", number=6, catalogue_field="t", task="t")):
            assert modality.names()[5:] == ("heat", "scent", "touch")
        assert modality.names()[5:] == ("heat", "scent")
    with pytest.raises(ValueError, match="'image' is in the table already"), modality.extended(modality.get("image")):
        pass
    assert len(modality.table()) == 5


def test_nothing_chosen_is_nothing_and_everything_is_the_table():
    assert modality.in_table_order(()) == ()
    assert modality.in_table_order(modality.names()[::-1]) == modality.names()
    with pytest.raises(ValueError, match="unknown modality 'scent'; known: image, text, table, video, audio"):
        modality.get("scent")
