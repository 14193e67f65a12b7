"""The shape of the house (DESIGN section 2): small files, small folders, imports that only go down the floors.

Every import counts: of a module, inside a function, and under `TYPE_CHECKING`.
"""

import ast
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("m5ds", "kernels", "tools")
MOST_LINES, MEDIAN_LINES, MOST_FILES = 400, 150, 14

FLOORS: tuple[tuple[str, ...], ...] = (
    ("m5ds.kernels",),
    # Each by its name, so that a new file beside them must say where it belongs.
    (
        *("m5ds", "m5ds.modality", "m5ds.batch", "m5ds.inputs", "m5ds.config", "m5ds.cli", "m5ds.files", "m5ds.cache"),
        "m5ds.plugins",
    ),
    ("m5ds.data", "m5ds.model"),
    # What leaves training for other programs: it ties the data layer to the model. An exported folder's code imports
    # m5ds.hub by that name, and m5ds.processor stands beside it.
    ("m5ds.processor", "m5ds.hub"),
    ("m5ds.train",),
    ("m5ds.downstream",),
    # Programs: m5ds/pretrain.py is one by its place in the launcher's command, and benchmarks and checks of the kernels
    # are commands beside the kernels that they measure.
    ("m5ds.pretrain", "m5ds.kernels.benchmarks", "m5ds.kernels.verify", "tools"),
)
"""Low to high. A package stands for all that is in it, unless a longer name says otherwise."""
STRANGERS = (("m5ds.data", "m5ds.model"),)
"""On one floor, and yet neither imports the other: the batch is all that both know."""


def python_files(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def num_lines(path: Path) -> int:
    return len((ROOT / path).read_text().splitlines())


def module_name(path: Path) -> str:
    """kernels/ is installed as m5ds.kernels."""
    parts = path.with_suffix("").parts
    parts = ("m5ds", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, module: str, *, functions: bool) -> Iterator[str]:
    """Full names of what is imported; those inside functions too, if asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported_names(node, module, functions=functions)


def imports(sources: Mapping[str, str], *, functions: bool) -> dict[str, set[str]]:
    """Module -> those of the modules that it imports. `from package import name` may name a module."""
    found = {}
    for module, text in sources.items():
        targets = set()
        for name in imported_names(ast.parse(text), module, functions=functions):
            while name and name not in sources:
                name = name.rpartition(".")[0]
            targets.add(name)
        found[module] = targets - {"", module}
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return sorted(found)


def package_of(module: str) -> str | None:
    """The longest name of FLOORS that holds the module. `m5ds` itself holds only what m5ds/__init__.py says."""
    names = [name for floor in FLOORS for name in floor if module == name or module.startswith(f"{name}.")]
    names = [name for name in names if name != "m5ds" or module == "m5ds"]
    return max(names, key=len, default=None)


def floor_of(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if package_of(module) in floor)


def upward(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Imports that go up, and those between strangers."""
    found = []
    for module, targets in sorted(graph.items()):
        for target in sorted(targets):
            pair = (package_of(module), package_of(target))
            if floor_of(target) > floor_of(module) or pair in STRANGERS or pair[::-1] in STRANGERS:
                found.append(f"{module} imports {target}")
    return found


SOURCES = {module_name(path): (ROOT / path).read_text() for path in python_files(*SOURCE_FOLDERS)}


def test_no_file_is_longer_than_400_lines():
    files = python_files(*SOURCE_FOLDERS, "tests")
    assert len(files) > 300
    assert {str(path): num_lines(path) for path in files if num_lines(path) > MOST_LINES} == {}


def test_half_of_the_source_files_have_at_most_150_lines():
    lines = [num_lines(path) for path in python_files(*SOURCE_FOLDERS)]
    assert 0 < statistics.median(count for count in lines if count) <= MEDIAN_LINES


def test_no_folder_holds_more_than_14_files():
    folders = [path.parent for path in python_files(*SOURCE_FOLDERS)]
    counts = {str(folder): folders.count(folder) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_no_modules_import_each_other_in_a_circle():
    assert circles(imports(SOURCES, functions=True)) == []


def test_every_module_has_a_floor_and_no_import_goes_up():
    assert [module for module in SOURCES if package_of(module) is None] == []
    assert upward(imports(SOURCES, functions=True)) == []


def test_circles_are_found_wherever_their_imports_stand():
    sources = {
        "m5ds.a": "def f():\n    from m5ds import b\n",
        "m5ds.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from m5ds.c import C\n",
        "m5ds.c": "import m5ds.a as first\n",
        "m5ds.d": "from m5ds.a import f\nfrom torch import nn\n",
    }
    graph = imports(sources, functions=True)
    assert graph == {"m5ds.a": {"m5ds.b"}, "m5ds.b": {"m5ds.c"}, "m5ds.c": {"m5ds.a"}, "m5ds.d": {"m5ds.a"}}
    assert circles(graph) == [["m5ds.a", "m5ds.b", "m5ds.c"]]
    assert circles(imports(sources, functions=False)) == []
    assert circles({"a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["c"], "e": ["a", "d"]}) == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("module", "target", "wrong"),
    [
        ("m5ds.train.step", "m5ds.downstream.settings", True),
        ("m5ds.downstream.settings", "m5ds.train.step", False),
        ("m5ds.config", "m5ds.model.blocks", True),
        ("m5ds.model.blocks", "m5ds.data.tokenizer", True),
        ("m5ds.data.tokenizer", "m5ds.model.blocks", True),
        ("m5ds.data.tokenizer", "m5ds.data.decode.media", False),
        ("m5ds.kernels.common.philox", "m5ds.modality", True),
        ("m5ds.kernels.common.philox", "m5ds.kernels.verify.aot", True),
        ("m5ds.kernels.verify.aot", "m5ds.kernels.common.philox", False),
        ("m5ds.processor", "m5ds.data.tokenizer", False),
        ("m5ds.model.m5mmt", "m5ds.processor", True),
        ("tools.search", "m5ds.downstream.settings", False),
        ("m5ds.downstream.settings", "m5ds.pretrain", True),
    ],
)
def test_imports_that_go_up_are_found(module, target, wrong):
    assert bool(upward({module: [target], target: []})) == wrong


def test_a_new_file_at_the_bottom_must_be_given_a_floor():
    assert package_of("m5ds.newcomer") is None and package_of("m5ds") == "m5ds"
    assert package_of("m5ds.data.newcomer") == "m5ds.data"
