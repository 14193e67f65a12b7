"""Catalogues: what a product is before it becomes a sample. Every record is checked.

The schema: docs/catalogue.md.
"""

import json
import math
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from m5ds import modality
from m5ds.data.catalogue.formats import FEATURE_SUFFIXES, CatalogueError, format_of, read_jsonl, read_parquet
from m5ds.data.catalogue.m5product import read_m5product

CATEGORY_SEPARATOR = " / "
"""Between the names of a category's path where it is one string, so it may not stand in a name."""
ORIGINAL_LANGUAGE = "original"
"""Where `i18n` keeps the title and description that another language's have replaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFile:
    """A file of a product."""

    path: str
    """Relative to the catalogue's media folder, with slashes."""
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueRecord:
    """One product, checked."""

    where: str
    """`file:line` of the record, for messages."""
    id: str
    title: str
    description: str
    attributes: tuple[tuple[str, str], ...]
    category: tuple[str, ...]
    """Path in the category tree, top first; empty where unknown."""
    media: dict[str, tuple[MediaFile, ...]]
    """Modality -> its files, for modalities that have any. Precomputed features stand in for the raw files."""
    missing: tuple[tuple[str, str], ...]
    """(modality, path) of listed files that do not exist."""
    group: str
    """Products of one group share a picture or clip and must stay in one split."""
    has_group: bool
    """False where the record named no group and is one of its own."""
    i18n: dict[str, dict[str, str]]
    """Language -> `title` and `description`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueOptions:
    """How a catalogue is read."""

    format: str | None = None
    """`jsonl`, `parquet`, `m5product`; None: by the file's suffix."""
    media: Path | None = None
    """The folder that media paths are relative to (official JSON: where media is looked up); None: the catalogue's."""
    group_key: str = "share_group"
    """The field whose value is the group."""
    language: str | None = None
    """Take title and description from `i18n` of this language where a product has it."""
    missing_media: str = "error"
    """`error`, or `absent`: a listed file that does not exist is an absence, recorded."""

    def __post_init__(self) -> None:
        if self.missing_media not in ("error", "absent"):
            raise CatalogueError(f"missing_media must be error or absent, got {self.missing_media!r}")


def read_catalogue(path: Path, options: CatalogueOptions | None = None) -> Iterator[CatalogueRecord]:
    """Stream the records of a catalogue in file order, each checked. Memory does not grow with the catalogue.

    Raises CatalogueError naming file:line, field, value and remedy. That ids do not repeat is the caller's to check
    over all records (`shard_plan.py` does), since a stream that stays small cannot remember them.
    """
    options = options or CatalogueOptions()
    if not path.is_file():
        raise CatalogueError(f"{path}: no such catalogue file")
    root = media_root(path, options)
    if not root.is_dir():
        raise CatalogueError(f"{root}: no such media folder")
    kind = format_of(path, options.format)
    if kind == "m5product":
        stream = read_m5product(path, root)
    else:
        stream = read_jsonl(path) if kind == "jsonl" else read_parquet(path)
    for where, raw in stream:
        yield _check(where, raw, root, options)


def media_root(path: Path, options: CatalogueOptions) -> Path:
    """The folder that media paths are relative to."""
    return options.media if options.media is not None else path.parent


def render_value(value: Any) -> str | None:
    """An attribute's value as a string: 8, 8.0 -> `8`; 0.80 -> `0.8`; True -> `true`; a list -> items joined by `, `.

    None for null. Raises `ValueError` for what has no plain rendering (objects, NaN).
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return format(value + 0.0, ".15g")
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(item for item in map(render_value, value) if item)
    raise ValueError("must be a string, number, boolean or a list of them; flatten it")


def _check(where: str, raw: dict[str, Any], root: Path, options: CatalogueOptions) -> CatalogueRecord:
    product_id = _text(where, raw, "id")
    if not product_id:
        raise CatalogueError(f"{where}: id must be a non-empty string, got {raw.get('id')!r}")
    here = f"{where}: product {product_id!r}"
    title, description = _text(here, raw, "title"), _text(here, raw, "description")
    i18n = _i18n(here, raw.get("i18n"))
    if options.language is not None and options.language in i18n:
        chosen = i18n[options.language]
        i18n = {**i18n, ORIGINAL_LANGUAGE: {"title": title, "description": description}}
        title, description = chosen.get("title", title), chosen.get("description", description)
    media, missing = _media(here, raw, root, options)
    group = _group(here, raw, options.group_key)
    return CatalogueRecord(
        where=where,
        id=product_id,
        title=title,
        description=description,
        attributes=_attributes(here, raw),
        category=_category(here, raw.get("category")),
        media=media,
        missing=missing,
        group=f"id:{product_id}" if group is None else group,
        has_group=group is not None,
        i18n=i18n,
    )


def _string(here: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise CatalogueError(f"{here}: {field} must be a string, got {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CatalogueError(f"{here}: {field} holds a lone surrogate, got {_shown(value)}; re-encode it") from None
    return value.strip()


def _text(here: str, raw: dict[str, Any], field: str) -> str:
    value = raw.get(field)
    return "" if value is None else _string(here, field, value)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _group(here: str, raw: dict[str, Any], field: str) -> str | None:
    value = raw.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CatalogueError(f"{here}: {field} must be a string or an integer, got {_shown(value)}")
    return _string(here, field, str(value))


def _category(here: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise CatalogueError(f"{here}: category must be a list of strings, top first, got {_shown(value)}")
    path = tuple(_string(here, "category", name) for name in value)
    if not all(path):
        raise CatalogueError(f"{here}: category must not hold an empty name, got {_shown(value)}")
    if any(CATEGORY_SEPARATOR in name for name in path):
        raise CatalogueError(
            f"{here}: category must not hold {CATEGORY_SEPARATOR!r}, which separates its levels, got {_shown(value)};"
            " split the name or write it without the spaces"
        )
    return path


def _i18n(here: str, value: Any) -> dict[str, dict[str, str]]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(entry is None or isinstance(entry, dict) for entry in value.values()):
        raise CatalogueError(f"{here}: i18n must map a language to its title and description, got {_shown(value)}")
    return {
        language: {
            field: _string(here, f"i18n.{language}.{field}", entry[field])
            for field in ("title", "description")
            if entry.get(field) is not None
        }
        for language, entry in value.items()
        if entry
    }


def _pairs(here: str, value: Any) -> list[tuple[Any, Any]]:
    """Attributes as an object, a list of [key, value], or a list of {"key", "value"}."""
    if value is None:
        return []
    if isinstance(value, dict):
        return list(value.items())
    pairs = []
    for item in value if isinstance(value, list) else [None]:
        if isinstance(item, dict) and set(item) == {"key", "value"}:
            pairs.append((item["key"], item["value"]))
        elif isinstance(item, list | tuple) and len(item) == 2:
            pairs.append((item[0], item[1]))
        else:
            raise CatalogueError(f"{here}: attributes must be a flat object of key to value, got {_shown(value)}")
    return pairs


def _attributes(here: str, raw: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    leaky = raw.get("leaky_attributes") or ()
    if not isinstance(leaky, dict | list | tuple):
        raise CatalogueError(f"{here}: leaky_attributes must be an object or a list of keys, got {_shown(leaky)}")
    withheld = {key for key in leaky if isinstance(key, str)}
    attributes = []
    for key, value in _pairs(here, raw.get("attributes")):
        key = _string(here, "attributes: a key", key)
        if not key:
            raise CatalogueError(f"{here}: attributes: an empty key (of value {_shown(value)}); name or remove it")
        try:
            rendered = render_value(value)
        except ValueError as error:
            raise CatalogueError(f"{here}: attributes.{key} {error}, got {_shown(value)}") from None
        # An empty value says nothing; a leaky attribute would give the label away.
        if rendered and key not in withheld:
            attributes.append((key, _string(here, f"attributes.{key}", rendered)))
    return tuple(attributes)


def _media(
    here: str,
    raw: dict[str, Any],
    root: Path,
    options: CatalogueOptions,
) -> tuple[dict[str, tuple[MediaFile, ...]], tuple[tuple[str, str], ...]]:
    features = _features(here, raw.get("features"))
    media: dict[str, tuple[MediaFile, ...]] = {}
    missing: list[tuple[str, str]] = []
    for row in modality.table():
        if not row.lists_files:
            continue
        field = row.catalogue_field
        listed = _path_list(here, field, raw.get(field))
        if row.name in features:
            field, listed = f"features.{row.name}", [features[row.name]]
        files = []
        for path in listed:
            file = _stat(here, field, path, root)
            if file is not None:
                files.append(file)
            elif options.missing_media == "error":
                raise CatalogueError(
                    f"{here}: {field} lists {path!r}, which is no file in {root};"
                    " mend the list, or pass --missing-media absent to record it as absent"
                )
            else:
                missing.append((row.name, path))
        if files:
            media[row.name] = tuple(files)
    return media, tuple(missing)


def _features(here: str, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CatalogueError(f"{here}: features must map a modality to a .npy or .npz file, got {_shown(value)}")
    holders = [row.name for row in modality.table() if row.lists_files]
    features = {}
    for name, path in value.items():
        if path is None:
            continue
        if name not in holders:
            raise CatalogueError(f"{here}: features names {name!r}; the modalities with files are {', '.join(holders)}")
        features[name] = _string(here, f"features.{name}", path)
        if not features[name].endswith(FEATURE_SUFFIXES):
            raise CatalogueError(f"{here}: features.{name} must be a .npy or .npz file, got {_shown(path)}")
    return features


def _path_list(here: str, field: str, value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise CatalogueError(f"{here}: {field} must be a list of paths, got {_shown(value)}")
    paths = [_string(here, field, path) for path in value]
    if not all(paths):
        raise CatalogueError(f"{here}: {field} lists an empty path; remove it")
    return paths


def _stat(here: str, field: str, path: str, root: Path) -> MediaFile | None:
    """The file, or None where there is no regular file. Only plain relative paths that stay below `root` are legal."""
    if "://" in path:
        raise CatalogueError(f"{here}: {field} lists the URL {path!r}; download it and list the file")
    if "\0" in path or "\\" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise CatalogueError(
            f"{here}: {field} lists {path!r}; paths are relative to {root}, with slashes, and stay inside it"
        )
    try:
        status = (root / path).stat()
    except OSError:
        return None
    # A FIFO or a device would block the build when it is read.
    if not stat.S_ISREG(status.st_mode):
        return None
    return MediaFile(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns)


def presence(media: Container[str], title: str, description: str, attributes: Sequence[tuple[str, str]]) -> list[str]:
    """Names, in table order, of the modalities that a product with this content has."""
    return [
        row.name
        for row in modality.table()
        if (row.name in media if row.content is None else row.content(title, description, attributes))
    ]


def dumps(value: Any) -> str:
    """Compact JSON, one line, the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
