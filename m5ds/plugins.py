"""Code from outside the package that a run names under `plugins`: what it registers is as good as ours.

A plugin is a Python file (`path/to/file.py`, relative to the working directory as `data.shards` is) or a module that
can be imported. When it is imported it registers what it adds: a modality, an input kind, an objective, an
embedder, a head.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

_LOADED: dict[str, ModuleType] = {}


class PluginError(ValueError):
    """A plugin that cannot be imported. Its message is one line: where it is named, which one, why."""


def load(names: Iterable[str], where: str) -> None:
    """Import each plugin that this process has not imported yet. PluginError says where it was named.

    An error inside a plugin other than a refused registration or import is the plugin's own and is raised as it is.
    """
    for name in names:
        key = _key(name)
        if key in _LOADED:
            continue
        try:
            _LOADED[key] = _import_file(Path(key)) if key.endswith(".py") else import_module(name)
        except (ImportError, OSError, SyntaxError, ValueError) as error:
            raise PluginError(
                f"{where}: plugins: {name!r} cannot be imported: {' '.join(str(error).split())};"
                " name a .py file relative to the working directory, or a module on PYTHONPATH"
            ) from error


def add_flag(parser: argparse.ArgumentParser) -> None:
    """`--plugin`, for tools that read no YAML."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a .py file or module that registers modalities"
    )


def load_flagged(arguments: argparse.Namespace) -> None:
    """Import what `--plugin` names."""
    load(arguments.plugin, "command line")


def not_loaded(names: Iterable[str]) -> list[str]:
    """Those of the names that this process has not imported."""
    return [name for name in names if _key(name) not in _LOADED]


def _key(name: str) -> str:
    """The module's name, or a file's whole path: one file is imported once, however it is written."""
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _import_file(path: Path) -> ModuleType:
    # Its name is the same in every process, so that what it defines can be pickled.
    name = f"m5ds_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
