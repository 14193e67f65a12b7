"""Tokenizers that a run owns: SentencePiece, or a Hugging Face one from a local directory (DESIGN.md 3.1).

A saved tokenizer is a directory with its own files and `m5ds_tokenizer.json`, which says of which kind it is.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import sentencepiece

from m5ds.files import write_atomically

DESCRIPTION_FILE = "m5ds_tokenizer.json"
MODEL_FILE = "tokenizer.model"
MAX_SENTENCE_CHARS = 4096
"""What goes beyond it is not trained on."""

# Their places are fixed in every model that we train.
_PIECES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_NUM_BYTE_PIECES = 256


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids. Special tokens are never produced from text, not even from the text `[MASK]`."""

    vocab_size: int
    """Rows that the embedding needs; every id is below it."""
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    """Sorted ids that masking must neither choose nor put in as a replacement."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without any special token around them; an empty text has none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text; special tokens are left out."""
        ...

    def save(self, directory: str | Path) -> None:
        """Write what `load_tokenizer` reads. The directory is made if need be."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model. Text is NFKC-normalised; characters outside the vocabulary become bytes."""

    def __init__(self, model: bytes, where: str = "SentencePiece model"):
        """`model` is the serialised model; `ValueError` where it is not one or lacks a special piece."""
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{where}: not a SentencePiece model; train one with tools/train_tokenizer.py") from error
        self.vocab_size: int = self._processor.vocab_size()
        ids = {}
        for name, piece in _PIECES.items():
            found = self._processor.piece_to_id(piece)
            if self._processor.id_to_piece(found) != piece:
                raise ValueError(f"{where}: has no piece {piece}; train one with tools/train_tokenizer.py")
            ids[name] = found
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids.values()
        self.special_ids: tuple[int, ...] = tuple(sorted(ids.values()))

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(_fold(text))

    def decode(self, ids: Sequence[int]) -> str:
        special = set(self.special_ids)
        return self._processor.decode([int(i) for i in ids if int(i) not in special])

    def save(self, directory: str | Path) -> None:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MODEL_FILE, self._model)
        _describe(folder, "sentencepiece", self)

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePieceTokenizer, (self._model,)


class HuggingFaceTokenizer:
    """A Hugging Face tokenizer from a local directory, for runs whose text encoder starts from a BERT."""

    def __init__(self, directory: str | Path):
        """`ValueError` where the directory holds no tokenizer or it lacks a special token."""
        from transformers import AutoTokenizer  # heavy, and only these runs need it

        try:
            # Special tokens in a catalogue's text are text. Set once here: changing it per call is not thread-safe.
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, split_special_tokens=True
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{directory}: holds no Hugging Face tokenizer that loads ({reason})") from error
        ids = {}
        for name in _PIECES:
            found = getattr(self._tokenizer, f"{name}_token_id", None)
            if found is None:
                raise ValueError(f"{directory}: the tokenizer has no {name} token; use one of the BERT family")
            ids[name] = int(found)
        self.vocab_size: int = len(self._tokenizer)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids.values()
        self.special_ids: tuple[int, ...] = tuple(sorted({*ids.values(), *self._tokenizer.all_special_ids}))

    def encode(self, text: str) -> list[int]:
        if self._tokenizer.is_fast:
            return self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def save(self, directory: str | Path) -> None:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save_pretrained(str(folder))
        _describe(folder, "huggingface", self)


def _fold(text: str) -> str:
    """NFKC keeps line breaks, tabs and NUL, which carry no meaning here: single blanks instead."""
    return " ".join(text.replace("\0", " ").split())


def _describe(folder: Path, kind: str, tokenizer: Tokenizer) -> None:
    tree = {"kind": kind, "vocab_size": tokenizer.vocab_size}
    tree |= {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in _PIECES}
    write_atomically(folder / DESCRIPTION_FILE, json.dumps(tree, indent=1) + "\n")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer from the directory that `save` wrote, a SentencePiece `.model` file, or a Hugging Face directory."""
    path = Path(path)
    if path.is_file():
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    if not path.is_dir():
        raise ValueError(f"{path}: no such tokenizer; train one with tools/train_tokenizer.py")
    description = path / DESCRIPTION_FILE
    if not description.is_file():
        return HuggingFaceTokenizer(path)
    try:
        tree = json.loads(description.read_text())
        kind, vocab_size = tree["kind"], tree["vocab_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description}: malformed ({error!r}); save the tokenizer again") from error
    tokenizer: Tokenizer
    if kind == "sentencepiece":
        if not (path / MODEL_FILE).is_file():
            raise ValueError(f"{path / MODEL_FILE}: missing; save the tokenizer again")
        tokenizer = SentencePieceTokenizer((path / MODEL_FILE).read_bytes(), str(path / MODEL_FILE))
    elif kind == "huggingface":
        tokenizer = HuggingFaceTokenizer(path)
    else:
        raise ValueError(f"{description}: kind must be sentencepiece or huggingface, got {kind!r}")
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{path}: holds {tokenizer.vocab_size} tokens, {DESCRIPTION_FILE} says {vocab_size}; save it again"
        )
    return tokenizer


def check_vocab(tokenizer: Tokenizer, expected: int, where: str = "the model") -> None:
    """`ValueError` unless the tokenizer has exactly the `expected` vocabulary of `where`."""
    if tokenizer.vocab_size != expected:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but {where} has a vocabulary of {expected};"
            " set data.tokenizer.path to the tokenizer that it was trained with"
        )


def train_tokenizer(
    sentences: Iterable[str], vocab_size: int, path: str | Path | None = None, *, num_threads: int = 1
) -> SentencePieceTokenizer:
    """Train a unigram SentencePiece model (NFKC, byte fallback, character coverage 0.9995 for Chinese).

    The same sentences in the same order and the same `num_threads` give the same bytes. Where they do not carry
    `vocab_size` pieces the model has fewer, with a warning. `path`: a `.model` file to write, or a directory to `save`
    in. Raises `ValueError` where there is no text or `vocab_size` has no room for the characters that occur.
    """
    model = BytesIO()
    num_sentences = 0

    def texts() -> Iterator[str]:
        nonlocal num_sentences
        for sentence in sentences:
            if text := _fold(sentence)[:MAX_SENTENCE_CHARS]:
                num_sentences += 1
                yield text

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts(),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="nfkc",
            byte_fallback=True,
            character_coverage=0.9995,
            max_sentence_length=8 * MAX_SENTENCE_CHARS,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=_PIECES["pad"],
            unk_piece=_PIECES["unk"],
            bos_piece=_PIECES["cls"],
            eos_piece=_PIECES["sep"],
            control_symbols=[_PIECES["mask"]],
            num_threads=num_threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        if num_sentences == 0:
            raise ValueError("there is no text to train a tokenizer on; look at the shards' train products") from None
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data.tokenizer.vocab_size {vocab_size} does not hold the {_NUM_BYTE_PIECES} bytes, {len(_PIECES)} special"
            f" tokens and every common character; make it larger (SentencePiece: {reason[-120:]})"
        ) from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    if tokenizer.vocab_size < vocab_size:
        warnings.warn(
            f"the text carries {tokenizer.vocab_size} pieces, fewer than vocab_size {vocab_size}: all are taken",
            stacklevel=2,
        )
    if path is not None:
        _write(tokenizer, Path(path))
    return tokenizer


def _write(tokenizer: SentencePieceTokenizer, path: Path) -> None:
    if path.suffix == ".model":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, tokenizer._model)
    else:
        tokenizer.save(path)
