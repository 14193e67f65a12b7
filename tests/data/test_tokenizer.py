import json
import pickle
import random
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import sentencepiece

from m5ds.data.tokenizer import (
    DESCRIPTION_FILE,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    check_vocab,
    load_tokenizer,
    train_tokenizer,
)

_CHINESE = ("红色", "蓝色", "台灯", "盘子", "靠垫", "帐篷", "包邮", "新款", "官方", "旗舰店", "面膜", "保湿", "补水")
_ENGLISH = ("red", "blue", "lamp", "plate", "cushion", "tent", "bracelet", "size", "colour", "brand", "price", "store")


def sentences(number: int = 600) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(_CHINESE + _ENGLISH, k=6)) + f" {rng.randrange(1000)}" for _ in range(number)]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return train_tokenizer(sentences(), 420)


def test_special_ids_are_fixed_and_apart_from_text(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == tokenizer.special_ids == (0, 1, 2, 3, 4)
    for text in ("[MASK] [CLS] [SEP] [PAD] [UNK]", "<s></s><unk>", "红色 lamp 龘 🚀"):
        assert not set(tokenizer.encode(text)) & set(tokenizer.special_ids)


@pytest.mark.parametrize(
    "text",
    [
        "红色台灯 包邮",
        "龘靐齉 罕见字",
        "にっこり笑う ｶﾀｶﾅ",
        "빨간 램프",
        "𠮷野家 🚀 👩‍🚀",
        "ＦＵＬＬ　ｗｉｄｔｈ ①②㍿",
        "naïve café ﬁne",
        "[MASK] is text",
    ],
)
def test_any_text_comes_back_nfkc_normalised(tokenizer, text):
    """CJK, also characters that training never saw, through byte fallback."""
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFKC", text)


def test_whitespace_carries_no_tokens(tokenizer):
    assert tokenizer.encode(" red\n\tlamp\0 ") == tokenizer.encode("red lamp")
    assert tokenizer.encode("") == tokenizer.encode(" \n ") == []


def test_decoding_leaves_special_tokens_out(tokenizer):
    ids = tokenizer.encode("red lamp")
    assert tokenizer.decode([tokenizer.cls_id, *ids, tokenizer.mask_id, tokenizer.pad_id]) == "red lamp"


def test_training_is_deterministic_and_takes_an_iterator(tokenizer, tmp_path):
    again = train_tokenizer(iter(sentences()), 420, tmp_path / "again.model")
    tokenizer.save(tmp_path / "one")
    assert (tmp_path / "again.model").read_bytes() == (tmp_path / "one/tokenizer.model").read_bytes()
    assert again.vocab_size == 420


def test_a_small_text_gets_a_smaller_vocabulary_and_a_warning():
    with pytest.warns(UserWarning, match="fewer than vocab_size 5000"):
        assert train_tokenizer(["red lamp", "blue lamp"], 5000).vocab_size < 400


def test_a_vocabulary_without_room_for_the_characters_is_refused():
    with pytest.raises(ValueError, match="data.tokenizer.vocab_size 262 does not hold"):
        train_tokenizer(sentences(), 262)


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        train_tokenizer(["", "  ", "\0"], 300)


def test_a_very_long_text_is_trained_on_in_part_not_dropped():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = train_tokenizer(["zygote quixotic " * 20_000], 300)
    byte_pieces = 256 + len(tokenizer.special_ids)
    assert min(tokenizer.encode("zygote")) >= byte_pieces


def test_saving_and_loading_gives_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved/tokenizer.model"):
        loaded = load_tokenizer(path)
        assert loaded.encode("红色 lamp 龘") == tokenizer.encode("红色 lamp 龘")
        assert loaded.vocab_size == tokenizer.vocab_size
    assert json.loads((tmp_path / "saved" / DESCRIPTION_FILE).read_text())["kind"] == "sentencepiece"


def test_workers_may_pickle_and_share_it(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    texts = sentences(200)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy.encode, texts)) == [tokenizer.encode(text) for text in texts]


def test_a_tokenizer_of_another_vocabulary_is_one_clear_line(tokenizer):
    check_vocab(tokenizer, 420)
    with pytest.raises(ValueError, match="the tokenizer has 420 tokens but the checkpoint has a vocabulary of 8000"):
        check_vocab(tokenizer, 8000, "the checkpoint")


def test_what_is_no_tokenizer_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk.model: not a SentencePiece model"):
        load_tokenizer(tmp_path / "junk.model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no Hugging Face tokenizer"):
        load_tokenizer(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "malformed"),
        ('{"kind": "wordpiece", "vocab_size": 420}', "kind must be"),
        ('{"vocab_size": 1}', "malformed"),
    ],
)
def test_a_damaged_description_is_named(tokenizer, tmp_path, text, expected):
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "saved" / DESCRIPTION_FILE).write_text(text)
    with pytest.raises(ValueError, match=expected):
        load_tokenizer(tmp_path / "saved")


def test_a_model_swapped_under_its_description_is_found(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    train_tokenizer(sentences(), 400, tmp_path / "saved/tokenizer.model")
    with pytest.raises(ValueError, match="holds 400 tokens, m5ds_tokenizer.json says 420"):
        load_tokenizer(tmp_path / "saved")


def test_a_sentencepiece_model_without_our_special_pieces_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_prefix=str(tmp_path / "other"), vocab_size=80, minloglevel=2
    )
    with pytest.raises(ValueError, match=r"has no piece \[PAD\]"):
        load_tokenizer(tmp_path / "other.model")


@pytest.fixture(scope="module")
def bert_directory(tmp_path_factory):
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "lamp", "##s", "[", "]", "mask", "红", "色"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_a_hugging_face_tokenizer_behaves_like_ours(bert_directory, tmp_path):
    tokenizer = load_tokenizer(bert_directory)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == 13 and tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.encode("red lamps 红色") == [5, 6, 7, 11, 12]
    assert tokenizer.mask_id not in tokenizer.encode("red [MASK]")
    assert tokenizer.decode([tokenizer.cls_id, 5, 6, 7]) == "red lamps"
    assert tokenizer.encode("") == []
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert isinstance(loaded, HuggingFaceTokenizer) and loaded.encode("red lamps [MASK]") == tokenizer.encode(
        "red lamps [MASK]"
    )


def test_hugging_face_encoding_is_the_same_from_many_threads(bert_directory):
    tokenizer = load_tokenizer(bert_directory)
    texts = ["red lamps " * (number % 7 + 1) for number in range(300)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == [tokenizer.encode(text) for text in texts]
