"""House rules that a file listing can check."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [
    path
    for folder in ("m5ds", "kernels", "tools", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__pycache__" not in path.parts
]


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
        ("m5ds/model", ("deepspeed", "nvidia", "av", "m5ds.train", "m5ds.downstream")),
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


def test_every_test_file_is_collected(request):
    """pytest passes over folders named `dist` or `build` unless told otherwise: a whole tier once went missing so."""
    skipped = {pattern for pattern in request.config.getini("norecursedirs")} & {
        part for path in CODE for part in path.parts
    }
    assert not skipped
