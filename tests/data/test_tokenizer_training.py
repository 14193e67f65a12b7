"""What a tokenizer is trained with and what its folder says: the pieces of a published run must not change."""

import json
import warnings

import pytest
import sentencepiece

from m5ds.data import tokenizer as module
from m5ds.data.tokenizer import HuggingFaceTokenizer, check_vocab, load_tokenizer, train_tokenizer

TEXT = [f"red lamp {number} blue plate" for number in range(40)]


@pytest.fixture(scope="module")
def model():
    with pytest.warns(UserWarning, match="fewer than vocab_size 400: all are taken"):
        return train_tokenizer(TEXT, 400)


@pytest.fixture
def asked(monkeypatch):
    """What SentencePiece is asked for."""
    found = {}

    def train(sentence_iterator, model_writer, **options):
        found.update(options, texts=list(sentence_iterator))
        raise RuntimeError("that is all")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
    return found


def test_sentencepiece_is_asked_for_what_the_documentation_says(asked):
    with pytest.raises(ValueError, match="vocab_size 500 does not hold the 256 bytes, 5 special tokens"):
        train_tokenizer(["a\0b \t c\n", "", " \n", "x" * 5000], 500, num_threads=3)
    assert asked == {
        "texts": ["a b c", "x" * 4096],
        "model_type": "unigram",
        "vocab_size": 500,
        "hard_vocab_limit": False,
        "normalization_rule_name": "nfkc",
        "byte_fallback": True,
        "character_coverage": 0.9995,
        "max_sentence_length": 32768,  # bytes: a character has at most four, and as many again once folded
        **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
        **{"pad_piece": "[PAD]", "unk_piece": "[UNK]", "bos_piece": "[CLS]", "eos_piece": "[SEP]"},
        "control_symbols": ["[MASK]"],
        "num_threads": 3,
        "minloglevel": 2,  # errors only
    }


def test_one_thread_is_the_default_and_no_text_is_told_apart_from_too_few_pieces(asked):
    with pytest.raises(ValueError, match="there is no text to train a tokenizer on"):
        train_tokenizer(["", "\0"], 500)
    assert asked["num_threads"] == 1


def test_a_vocabulary_that_is_full_is_no_news(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train_tokenizer(TEXT, model.vocab_size).vocab_size == model.vocab_size


def test_a_tokenizer_is_written_as_a_file_or_a_folder(tmp_path, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_tokenizer(TEXT, 400, tmp_path / "a" / "b" / "own.model")
        train_tokenizer(TEXT, 400, tmp_path / "c" / "d")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["own.model"]
    assert sorted(path.name for path in (tmp_path / "c/d").iterdir()) == ["m5ds_tokenizer.json", "tokenizer.model"]
    data = (tmp_path / "c/d/tokenizer.model").read_bytes()
    assert data == (tmp_path / "a/b/own.model").read_bytes()
    expected = {"kind": "sentencepiece", "vocab_size": model.vocab_size}
    expected |= {"pad_id": 0, "unk_id": 1, "cls_id": 2, "sep_id": 3, "mask_id": 4}
    text = (tmp_path / "c/d/m5ds_tokenizer.json").read_text()
    assert text == json.dumps(expected, indent=1) + "\n"
    for path in ("a/b/own.model", "c/d"):
        assert load_tokenizer(tmp_path / path).encode("red lamp") == model.encode("red lamp")


@pytest.mark.parametrize("change", [1, -1])
def test_a_description_of_another_size_is_refused(tmp_path, model, change):
    model.save(tmp_path)
    tree = json.loads((tmp_path / "m5ds_tokenizer.json").read_text())
    tree["vocab_size"] += change
    (tmp_path / "m5ds_tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(
        ValueError, match=f"holds {model.vocab_size} tokens, m5ds_tokenizer.json says {tree['vocab_size']}"
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=f"has {model.vocab_size} tokens but the model has a vocabulary of"):
        check_vocab(model, model.vocab_size + change)
    check_vocab(model, model.vocab_size)


def test_a_folder_without_a_model_is_named(tmp_path, model):
    model.save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="tokenizer.model: missing; save the tokenizer again"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no such tokenizer; train one"):
        load_tokenizer(tmp_path / "nowhere")


def test_what_ails_a_hugging_face_folder_is_told_in_200_characters(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    asked = []

    def load(folder, **options):
        asked.append((folder, options))
        raise OSError("no\n  file " + "x" * 500)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    with pytest.raises(ValueError, match="holds no Hugging Face tokenizer") as caught:
        HuggingFaceTokenizer(tmp_path)
    assert str(caught.value).endswith(f"({('no file ' + 'x' * 500)[:200]})")
    # Nothing is fetched, and special tokens in a catalogue's text are text.
    assert asked == [(str(tmp_path), {"local_files_only": True, "split_special_tokens": True})]


def test_saved_folders_are_made_with_their_parents(tmp_path, model):
    model.save(tmp_path / "new" / "folder")
    model.save(tmp_path / "new" / "folder")
    assert module.MODEL_FILE in {path.name for path in (tmp_path / "new/folder").iterdir()}
    assert model.decode([0, 1, 2, 3, 4]) == "" and model.encode("") == []
