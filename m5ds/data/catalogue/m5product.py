"""The official M5Product JSON (PAPER.md section 3): one huge object, streamed, with media looked up by item id.

`{"<item_id>": {"title": str, "label": str, "url": image URL, "video": video URL, "pv": "key#:#value#;#..."}, ...}`.
The files themselves are not ours to ship; users download them into a folder `images/<item_id>.jpg`,
`videos/<item_id>.mp4`, ... (docs/catalogue.md).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from m5ds import modality
from m5ds.data.catalogue.formats import FEATURE_SUFFIXES, CatalogueError, must_be_object

_BLOCK = 1 << 20
_MAX_RECORD_CHARS = 1 << 24
_BLANK = " \t\r\n"


def read_m5product(path: Path, root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(file:line, record)` in the shape of our own catalogues; media paths are relative to `root`.

    An item whose URL is given but whose file is not there lists the file that is missing.
    """
    lookup = _Lookup(root)
    for where, item_id, item in _items(path):
        yield where, _record(f"{where}: item {item_id!r}", item_id, item, lookup)


def _items(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        text = _Text(path, file)
        text.expect("{")
        while text.peek() != "}":
            where = text.where
            item_id = text.value()
            if not isinstance(item_id, str):
                raise CatalogueError(f"{where}: an item id must be a string, got {item_id!r}")
            text.expect(":")
            yield where, item_id, must_be_object(f"{where}: item {item_id!r}", text.value())
            if text.peek() == "}":
                break
            text.expect(",")


def _record(here: str, item_id: str, item: dict[str, Any], lookup: "_Lookup") -> dict[str, Any]:
    """Pieces of `pv` without a key or a value are dropped: merchants leave many."""
    if "/" in item_id or "\\" in item_id or item_id.startswith("."):
        raise CatalogueError(f"{here}: an item id names files, so it must not hold slashes or start with a dot")
    for field in ("title", "label", "url", "video", "pv"):
        if not isinstance(item.get(field), str | None):
            raise CatalogueError(f"{here}: {field} must be a string, got {type(item[field]).__name__}")
    pieces = (piece.partition("#:#") for piece in (item.get("pv") or "").split("#;#"))
    label = (item.get("label") or "").strip()
    record: dict[str, Any] = {
        "id": item_id,
        "title": item.get("title"),
        "attributes": [[key.strip(), value.strip()] for key, _, value in pieces if key.strip() and value.strip()],
        "category": [label] if label else None,
        "features": {},
    }
    for row in modality.table():
        if not row.lists_files:
            continue
        features = lookup.find(f"features/{row.name}", item_id, FEATURE_SUFFIXES)
        raw = lookup.find(row.catalogue_field, item_id, row.suffixes)
        if features is not None:
            record["features"][row.name] = features
        elif raw is not None:
            record[row.catalogue_field] = [raw]
        elif row.official_field is not None and item.get(row.official_field):
            record[row.catalogue_field] = [f"{row.catalogue_field}/{item_id}{row.suffixes[0]}"]
    return record


class _Lookup:
    """Files by item id. A folder is listed once for its suffixes: trying all of them for each of millions is slow."""

    def __init__(self, root: Path):
        self._root = root
        self._suffixes: dict[str, frozenset[str]] = {}

    def find(self, folder: str, item_id: str, suffixes: tuple[str, ...]) -> str | None:
        """The first `<folder>/<item_id><suffix>` that is a file, relative to the root."""
        if folder not in self._suffixes:
            path = self._root / folder
            names = path.iterdir() if path.is_dir() else ()
            self._suffixes[folder] = frozenset(name.suffix for name in names)
        for suffix in suffixes:
            if suffix in self._suffixes[folder] and (self._root / f"{folder}/{item_id}{suffix}").is_file():
                return f"{folder}/{item_id}{suffix}"
        return None


class _Text:
    """A JSON text read block by block; what has been consumed is forgotten."""

    def __init__(self, path: Path, reader: IO[str]):
        self._path = path
        self._reader = reader
        self._buffer = ""
        self._position = 0
        self._line = 1
        self._decode = json.JSONDecoder().raw_decode

    @property
    def where(self) -> str:
        return f"{self._path}:{self._line}"

    def peek(self) -> str:
        """The next character that is not blank, "" at the end."""
        while True:
            while self._position < len(self._buffer):
                character = self._buffer[self._position]
                if character not in _BLANK:
                    return character
                self._line += character == "\n"
                self._position += 1
            if not self._grow():
                return ""

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            shown = repr(found) if found else "the end of the file (is it cut short?)"
            raise CatalogueError(f'{self.where}: expected "{character}", got {shown}; the official file is one object')
        self._position += 1

    def value(self) -> Any:
        """Decode the next JSON value, reading on for as long as it is not whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._position)
            except (ValueError, RecursionError) as error:
                if len(self._buffer) - self._position < _MAX_RECORD_CHARS and self._grow():
                    continue
                shown = self._buffer[self._position : self._position + 60]
                raise CatalogueError(f"{self.where}: not JSON, got {shown!r}; is the file cut short?") from error
            if end == len(self._buffer) and self._grow():
                continue  # a number may go on in the next block
            self._line += self._buffer.count("\n", self._position, end)
            self._position = end
            return value

    def _grow(self) -> bool:
        """Read one more block behind what is left; False at the end of the file."""
        try:
            block = self._reader.read(_BLOCK)
        except UnicodeDecodeError as error:
            raise CatalogueError(f"{self.where}: not UTF-8 after this line ({error.reason})") from error
        self._buffer = self._buffer[self._position :] + block
        self._position = 0
        return bool(block)
