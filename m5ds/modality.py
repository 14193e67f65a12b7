"""The one table of modalities. M is its length; nothing else in the code knows how many there are or their order.

Adding a modality touches this table, one embedder, one head (both in m5ds/model) and one YAML.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """One row of the table."""

    name: str
    """The name used in catalogues' presence, configs, metrics and module names."""
    source: str
    """What its members are to the data layer: `image`, `text`, `table`, `video`, `audio`; `array` reads `.npy`."""
    catalogue_field: str
    """The catalogue record's field that declares it (docs/catalogue.md)."""
    task: str
    """The name of its masked objective in metrics and logs (paper section 3.2)."""


_TABLE: tuple[Modality, ...] = (
    Modality(name="image", source="image", catalogue_field="images", task="mrp"),
    Modality(name="text", source="text", catalogue_field="title", task="mlm"),
    Modality(name="table", source="table", catalogue_field="attributes", task="mem"),
    Modality(name="video", source="video", catalogue_field="videos", task="mfp"),
    Modality(name="audio", source="audio", catalogue_field="audios", task="mam"),
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


@contextmanager
def extended(*extra: Modality) -> Iterator[None]:
    """The table with further modalities at its end, for the length of a `with` block (experiments and tests)."""
    global _TABLE
    before = _TABLE
    for modality in extra:
        if modality.name in names():
            raise ValueError(f"modality {modality.name!r} is in the table already")
        _TABLE = (*_TABLE, modality)
    try:
        yield
    finally:
        _TABLE = before
