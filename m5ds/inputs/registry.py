"""The registered kinds, and `InputSpec`: any of them, chosen by `kind` when a configuration is parsed.

The choice is made at parse time and not at import time, so that a plugin's kind is as good as ours.
"""

import dataclasses
import json
from functools import lru_cache, reduce
from operator import or_
from typing import Annotated, Any, TypeVar

from pydantic import Field, GetCoreSchemaHandler, SerializationInfo, TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from m5ds.inputs.base import InputKind

Kind = TypeVar("Kind", bound=type)
_KINDS: dict[str, type[InputKind]] = {}


def register(cls: Kind) -> Kind:
    """Make a kind known to configurations by the default of its `kind` field. ValueError: the name is taken."""
    assert issubclass(cls, InputKind) and dataclasses.is_dataclass(cls)
    (name,) = [str(field.default) for field in dataclasses.fields(cls) if field.name == "kind"]
    if name in _KINDS:
        raise ValueError(f"input kind {name!r} is registered already, by {_KINDS[name].__module__}; choose another")
    _KINDS[name] = cls
    return cls


def kinds() -> dict[str, type[InputKind]]:
    """Every registered kind by name, in order of registration."""
    return dict(_KINDS)


class _ByKind:
    """Makes pydantic read a mapping as the kind that it names."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        serialize = core_schema.plain_serializer_function_ser_schema(_serialized, info_arg=True)
        return core_schema.no_info_plain_validator_function(_validated, serialization=serialize)


InputSpec = Annotated[InputKind, _ByKind()]
"""One of the registered kinds: what a model's modality reads."""


def _validated(value: Any) -> InputKind:
    if isinstance(value, dict) and isinstance(name := value.get("kind"), str) and name not in _KINDS:
        raise PydanticCustomError(
            "unknown_input_kind",
            "input kind '{name}' is unknown; known: {known}; a plugin's kind needs its plugin (docs/configuration.md)",
            {"name": name, "known": ", ".join(_KINDS)},
        )
    adapter = _union(tuple(_KINDS.values()))
    # A mapping goes through JSON, since pydantic's strict mode then takes a list for a tuple.
    return adapter.validate_json(json.dumps(value)) if isinstance(value, dict) else adapter.validate_python(value)


@lru_cache(maxsize=8)
def _union(known: tuple[type[InputKind], ...]) -> TypeAdapter[InputKind]:
    one_of_them: Any = Annotated[reduce(or_, known), Field(discriminator="kind")]
    return TypeAdapter(one_of_them)


def _serialized(value: InputKind, info: SerializationInfo) -> Any:
    return TypeAdapter(type(value)).dump_python(value, mode="json" if info.mode == "json" else "python")
