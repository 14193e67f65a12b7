"""The Hugging Face configuration: what it takes over, in which order, and what it refuses."""

import json

import pytest
from model_cases import tiny_spec

from m5ds.model.configuration import M5Config
from m5ds.model.remote_code import AUTO_MAP, write_remote_code


class Tokens:
    vocab_size, mask_id, pad_id, special_ids = 50, 7, 3, (9, 2, 7)


def test_a_configuration_for_a_tokenizer_takes_all_of_its_numbers(tmp_path):
    spec = tiny_spec(tmp_path)
    config = M5Config.for_tokenizer(spec, Tokens, initializer_seed=11, activation_checkpointing=True)
    assert (config.vocab_size, config.mask_id, config.pad_id, config.special_ids) == (50, 7, 3, [2, 7, 9])
    assert (config.initializer_seed, config.activation_checkpointing) == (11, True)
    assert config.spec == spec


def test_the_defaults_are_those_of_a_model_without_tokens(tmp_path):
    config = M5Config.from_spec(tiny_spec(tmp_path))
    assert (config.vocab_size, config.mask_id, config.pad_id, config.special_ids) == (0, 0, 0, [])
    assert (config.initializer_seed, config.activation_checkpointing, config.tie_word_embeddings) == (0, False, True)


def test_blocks_keep_their_order_through_a_file_that_sorts_them(tmp_path):
    spec = tiny_spec(tmp_path, "blocks={zebra: {}, ape: {visibility: all}, middle: {repeat: 2}}")
    M5Config.from_spec(spec, vocab_size=40).save_pretrained(tmp_path / "saved")
    found = M5Config.from_pretrained(tmp_path / "saved")
    assert list(found.spec.blocks) == list(spec.blocks) and found.spec == spec
    tree = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert tree["auto_map"] == AUTO_MAP and tree["model_type"] == "m5mmt"
    assert (tmp_path / "saved" / "modeling_m5ds.py").is_file()


def test_without_an_order_the_mapping_gives_it(tmp_path):
    spec = tiny_spec(tmp_path)
    config = M5Config.from_spec(spec)
    config.block_order = None
    assert config.spec == spec


@pytest.mark.parametrize("order", [["unimodal"], ["unimodal", "cross", "more"], []])
def test_an_order_of_other_blocks_is_refused(tmp_path, order):
    config = M5Config.from_spec(tiny_spec(tmp_path))
    config.block_order = order
    with pytest.raises(ValueError, match=r"block_order .* and model.blocks name different blocks"):
        _ = config.spec


def test_a_configuration_without_a_model_says_how_to_build_one():
    with pytest.raises(ValueError, match=r"M5Config.model is missing: build it with M5Config.from_spec"):
        _ = M5Config().spec


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "wide"), ("hidden_size", 0), ("unheard_of", 1)])
def test_an_unknown_key_or_ill_typed_value_is_named(tmp_path, key, value):
    config = M5Config.from_spec(tiny_spec(tmp_path))
    config.model = {**config.model, key: value}
    with pytest.raises(ValueError, match=rf"config.json: model.{key}: .*got {value!r}"):
        _ = config.spec


@pytest.mark.parametrize(
    ("special", "first"),
    [([], 0), ([0], 1), ([0, 1, 4], 5), ([0, 9, 10], 10), ([0, 10, 19], 1), ([12, 19], 0), (None, 0)],
)
def test_replacements_are_drawn_behind_the_leading_special_tokens(special, first):
    """Of 20 tokens the special ones in the upper half do not count."""
    assert M5Config(vocab_size=20, special_ids=special).first_ordinary_id == first


def test_a_loaded_class_does_not_save_a_copy_of_its_code(tmp_path):
    M5Config.register_for_auto_class("AutoConfig")
    M5Config.from_spec(tiny_spec(tmp_path)).save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "modeling_m5ds.py"]


def test_the_loading_file_is_written_into_a_new_folder_and_over_an_old_one(tmp_path):
    folder = tmp_path / "not" / "yet"
    write_remote_code(folder)
    file = folder / "modeling_m5ds.py"
    expected = file.read_text()
    file.write_text("old")
    write_remote_code(str(folder))
    assert file.read_text() == expected and "from m5ds.hub import M5Config, M5ForPretraining, M5Processor" in expected
    assert {value.partition(".")[0] for value in AUTO_MAP.values()} == {file.stem}


def test_an_unknown_key_of_a_block_is_named_with_its_place(tmp_path):
    config = M5Config.from_spec(tiny_spec(tmp_path))
    config.model["blocks"]["cross"]["hight"] = 3
    with pytest.raises(ValueError, match=r"config.json: model.blocks.cross.hight: .*got 3"):
        _ = config.spec
