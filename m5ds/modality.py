"""The one table of modalities. M is its length; nothing else in the code knows how many there are or their order.

CONTRIBUTING.md says how to add one, to the table itself or by a plugin that calls `register`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MAX_NUMBER = 255
"""Philox keys hold the number in a byte (kernels/common/philox.py)."""

Content = Callable[[str, str, Sequence[tuple[str, str]]], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """One row of the table."""

    name: str
    """The name used in catalogues' presence, configs, metrics and module names."""
    number: int
    """Its Philox key, 0 to 255: its own for ever, whatever its place in the table."""
    catalogue_field: str
    """The catalogue record's field that declares it (docs/catalogue.md)."""
    task: str
    """The name of its masked objective in metrics and logs (paper section 3.2)."""
    content: Content | None = None
    """(title, description, attributes) -> what the record itself holds of it, empty for none. None: it lists files."""
    suffixes: tuple[str, ...] = (".npy", ".npz")
    """Names of its files by which an official M5Product catalogue is searched, the likeliest first."""
    official_field: str | None = None
    """The official item's field that says that there is such a file, whether or not it was fetched."""
    sound_of: str | None = None
    """A modality whose files carry its content too: a clip its sound (tools/build_shards.py --audio-from-video)."""

    @property
    def lists_files(self) -> bool:
        """True: a product's record lists files. False: the content is in the record itself."""
        return self.content is None


def _text(title: str, description: str, attributes: Sequence[tuple[str, str]]) -> str:
    return title or description


def _pairs(title: str, description: str, attributes: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    return attributes


_TABLE: tuple[Modality, ...] = (
    Modality(
        name="image",
        number=0,
        catalogue_field="images",
        task="mrp",
        suffixes=(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
        official_field="url",
    ),
    Modality(
        name="text",
        number=1,
        catalogue_field="title",
        task="mlm",
        content=_text,
    ),
    Modality(
        name="table",
        number=2,
        catalogue_field="attributes",
        task="mem",
        content=_pairs,
    ),
    Modality(
        name="video",
        number=3,
        catalogue_field="videos",
        task="mfp",
        suffixes=(".mp4", ".webm", ".mkv", ".mov", ".avi", ".flv"),
        official_field="video",
    ),
    Modality(
        name="audio",
        number=4,
        catalogue_field="audios",
        task="mam",
        suffixes=(".wav", ".mp3", ".ogg", ".flac", ".m4a", ".aac", ".opus"),
        sound_of="video",
    ),
)


def table() -> tuple[Modality, ...]:
    """All modalities in the paper's chain order (PAPER.md section 1.2): image, text, table, video, audio."""
    return _TABLE


def names() -> tuple[str, ...]:
    """The modalities' names in table order."""
    return tuple(modality.name for modality in _TABLE)


def get(name: str) -> Modality:
    """The table's row of that name; `ValueError` names the known ones."""
    for modality in _TABLE:
        if modality.name == name:
            return modality
    raise ValueError(f"unknown modality {name!r}; known: {', '.join(names())}")


def in_table_order(chosen: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The chosen names in table order; `ValueError` for an unknown or repeated name."""
    for name in chosen:
        get(name)
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"modalities must not repeat, got {list(chosen)}")
    return tuple(name for name in names() if name in chosen)


def register(new: Modality) -> Modality:
    """Add a row at the table's end (plugins). `ValueError`: its name or number is taken, or the number is no byte."""
    global _TABLE
    if new.name in names():
        raise ValueError(f"modality {new.name!r} is in the table already")
    if not 0 <= new.number <= MAX_NUMBER:
        raise ValueError(f"modality {new.name!r}: number must lie in 0 to {MAX_NUMBER}, got {new.number}")
    for row in _TABLE:
        if row.number == new.number:
            raise ValueError(f"modality {new.name!r}: number {new.number} is {row.name}'s; choose one that is free")
    _TABLE = (*_TABLE, new)
    return new


@contextmanager
def extended(*extra: Modality) -> Iterator[None]:
    """The table with further modalities at its end, for the length of a `with` block (experiments and tests)."""
    global _TABLE
    before = _TABLE
    try:
        for modality in extra:
            register(modality)
        yield
    finally:
        _TABLE = before
