"""House rules that a file listing can check."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for folder in ("m5ds", "kernels", "tools", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
]
KIND_FILES = [path for path in (ROOT / "m5ds/inputs").glob("*_*.py") if "@register" in path.read_text()]


def test_no_module_shadows_a_top_level_module(monkeypatch):
    """`deepspeed m5ds/pretrain.py` puts m5ds/ first on sys.path, so `m5ds/types.py` would replace the real one."""
    outside = [entry for entry in sys.path if ".venv" in entry or not Path(entry or ".").resolve().is_relative_to(ROOT)]
    monkeypatch.setattr(sys, "path", outside)
    names = {path.stem if path.suffix == ".py" else path.name for path in (ROOT / "m5ds").iterdir()}
    names -= {"__init__", "__pycache__"}
    shadowed = [name for name in names if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None]
    assert not shadowed


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("m5ds/model", ("deepspeed", "nvidia", "av", "m5ds.data", "m5ds.train", "m5ds.downstream")),
        ("m5ds/inputs", ("deepspeed", "nvidia", "av", "m5ds.config", "m5ds.data", "m5ds.model", "m5ds.train")),
        ("m5ds/data", ("deepspeed", "m5ds.model", "m5ds.train", "m5ds.downstream")),
        ("kernels", ("deepspeed", "m5ds.model", "m5ds.data", "m5ds.train", "m5ds.downstream", "m5ds.config")),
    ],
)
def test_dependencies_point_one_way(package, forbidden):
    """Imports at module level only: initialisation may ask DeepSpeed for a partitioned parameter when it meets one."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for line in path.read_text().splitlines():
            imported = line.split()[1] if line.startswith(("import ", "from ")) else ""
            if any(imported == name or imported.startswith(f"{name}.") for name in forbidden):
                found.append(f"{path.relative_to(ROOT)}: {line}")
    assert not found


def test_only_a_kinds_own_file_knows_which_kind_it_is():
    """Elsewhere a kind is asked for what it is; its class is named by decoders, for types, and by benchmarks alone."""
    kinds = {path.stem: "".join(map(str.title, path.stem.split("_"))) for path in KIND_FILES}
    assert len(kinds) == 7
    found = []
    for path in CODE:
        name = str(path.relative_to(ROOT))
        allowed = name.startswith(("m5ds/inputs/", "m5ds/data/decode/", "tools/bench/", "tests/", "kernels/"))
        if allowed:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        compared = {leaf.value for node in nodes if isinstance(node, ast.Compare) for leaf in constants_of(node)}
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        found += [f"{name}: {kind}" for kind, cls in kinds.items() if kind in compared or cls in named]
    assert not found


def constants_of(node):
    return [leaf for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]


def test_every_test_file_is_collected(request):
    """pytest passes over folders named `dist` or `build` unless told otherwise: a whole tier once went missing so."""
    skipped = {pattern for pattern in request.config.getini("norecursedirs")} & {
        part for path in CODE for part in path.parts
    }
    assert not skipped
