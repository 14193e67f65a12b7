"""From what the YAML says of objectives to what they are after defaults, checked key by key.

`model.objectives` is a mapping from a name to the objective's section. `kind` says which objective it is; without it
the name does. A null section leaves one out that a `base` file declares.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from m5ds.config import ConfigError, ModelConfig
from m5ds.model.objectives.base import Objective, kind_of, kinds


def specs(
    sections: Mapping[str, dict[str, Any] | None], where: str = "model"
) -> dict[str, tuple[type[Objective], Any]]:
    """By name, in order: the objective's class and its strict dataclass. ConfigError names `where` and the key."""
    found: dict[str, tuple[type[Objective], Any]] = {}
    for name, section in sections.items():
        if section is None:
            continue
        tree = dict(section)
        kind = tree.pop("kind", name)
        if kind not in kinds():
            raise ConfigError(f"{where}: model.objectives.{name}: unknown kind {kind!r}; known: {', '.join(kinds())}")
        objective = kind_of(kind)
        try:
            found[name] = (objective, TypeAdapter(objective.config_class).validate_json(json.dumps(tree)))
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(item, name, where) for item in error.errors())) from error
    return found


def resolved(model: ModelConfig, where: str) -> ModelConfig:
    """The model section with every objective's keys filled in. ConfigError names `where` and the key."""
    sections: dict[str, dict[str, Any] | None] = {}
    for name, (objective, spec) in specs(model.objectives, where).items():
        kind = (model.objectives[name] or {}).get("kind", name)
        sections[name] = {"kind": kind, **TypeAdapter(objective.config_class).dump_python(spec, mode="json")}
    return dataclasses.replace(model, objectives=sections)


def _explain(item: Any, name: str, where: str) -> str:
    key = ".".join(["model.objectives", name, *(str(part) for part in item["loc"])])
    if item["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown key {key}; remove it or correct its spelling (docs/configuration.md lists the keys)"
    return f"{where}: {key}: {item['msg']}, got {item['input']!r}"
