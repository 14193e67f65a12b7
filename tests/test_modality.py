"""One table, in the paper's order; nothing else knows how many modalities there are."""

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
    scent = Modality(name="scent", source="array", catalogue_field="scents", task="msp")
    with modality.extended(scent):
        assert modality.names()[-1] == "scent"
        with pytest.raises(ValueError, match="already"), modality.extended(scent):
            pass
    assert "scent" not in modality.names()


def test_a_row_says_where_a_modality_comes_from_and_what_its_task_is_called():
    rows = [(row.name, row.source, row.catalogue_field, row.task) for row in modality.table()]
    assert rows == [
        ("image", "image", "images", "mrp"),
        ("text", "text", "title", "mlm"),
        ("table", "table", "attributes", "mem"),
        ("video", "video", "videos", "mfp"),
        ("audio", "audio", "audios", "mam"),
    ]
    assert modality.get("video") is modality.table()[3]


def test_an_extension_ends_with_an_error_in_its_block():
    scent = Modality(name="scent", source="array", catalogue_field="scents", task="msp")
    with pytest.raises(RuntimeError), modality.extended(scent):
        raise RuntimeError
    assert modality.names()[-1] == "audio"


def test_several_modalities_may_be_added_and_each_only_once():
    one, two = (
        Modality(name=name, source="array", catalogue_field=f"{name}s", task=name) for name in ("heat", "scent")
    )
    with modality.extended(one, two):
        assert modality.names()[5:] == ("heat", "scent") and len(modality.table()) == 7
        assert modality.in_table_order(("scent", "image")) == ("image", "scent")
        with modality.extended(Modality(name="touch", source="array", catalogue_field="t", task="t")):
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
