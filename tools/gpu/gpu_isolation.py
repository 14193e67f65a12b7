"""Import modules as if only some packages were installed: gpu_isolation.py NAME,NAME,... MODULE...

What `PYTHONPATH` adds is seen whole; of what is installed, only the named distributions and all that they require.
Standard library only, as it runs in another interpreter. Run by tools/gpu_bundle.py.
"""

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_requirements(names: set[str]) -> set[str]:
    """The distributions and, over and over, those that they require here, whatever the markers say."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        found.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        queue += [canonical(re.split(r"[^\w.-]", text)[0]) for text in required if "extra ==" not in text]
    return found


def modules_of(distribution: importlib.metadata.Distribution) -> set[str]:
    """Its modules down to the second level, as distributions share a namespace such as `nvidia`."""
    code = (file for file in distribution.files or () if file.suffix == ".py" or ".so" in file.name)
    names = (tuple(part.split(".")[0] for part in file.parts[:2]) for file in code)
    return {".".join(parts[:depth]) for parts in names for depth in (1, 2)}


class Filtered:
    """Stands in the path finder's place: modules and metadata of hidden distributions do not exist."""

    def __init__(self, allowed: set[str], added: list[str]) -> None:
        self.allowed, self.added = allowed, added
        owned: dict[bool, set[str]] = {True: set(sys.stdlib_module_names), False: set()}
        for found in importlib.metadata.distributions():
            owned[canonical(found.metadata["Name"]) in allowed] |= modules_of(found)
        self.hidden = owned[False] - owned[True]

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name not in self.hidden:
            return PathFinder.find_spec(name, path, target)
        inside = [entry for entry in path or () if entry.startswith(tuple(self.added))]
        return PathFinder.find_spec(name, inside if "." in name else self.added, target)

    def find_distributions(self, context: Any) -> Iterator[importlib.metadata.Distribution]:
        for found in importlib.metadata.MetadataPathFinder.find_distributions(context):
            where = str(found.locate_file(""))
            if canonical(found.metadata["Name"]) in self.allowed or where.rstrip("/") in self.added:
                yield found


def main() -> None:
    names, *modules = sys.argv[1:]
    added = [entry for entry in sys.path if "site-packages" not in entry and "/lib/python" not in entry]
    filtered = Filtered(with_requirements(set(names.split(","))), added)
    # The finders of editable installations go too: they would show this checkout by another way.
    standard = [finder for finder in sys.meta_path if getattr(finder, "__module__", "").startswith("_frozen_importlib")]
    sys.meta_path[:] = [filtered if finder is PathFinder else finder for finder in standard]
    for module in modules:
        importlib.import_module(module)


if __name__ == "__main__":
    main()
