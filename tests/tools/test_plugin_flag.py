"""`--plugin` of the tools that read no YAML: shards of a plugin's modality are built, checked and searched with it."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from plugin_scope import forgotten

from m5ds import modality, plugins
from m5ds.data.shards.manifest import read_manifest
from m5ds.inputs import kinds

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests/inputs/toy_depth.py"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a tool with arguments as a process of its own would; returns (exit code, stdout, stderr)."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        with forgotten(), pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
        assert "depth" not in modality.names()
        return (stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def catalogue(tmp_path):
    """Four products with a depth map, the last one damaged, and a listing of the maps."""
    with forgotten():
        plugins.load([str(PLUGIN)], "here")
        encode = sys.modules[kinds()["depth_patches"].__module__].encode
        files = [encode(np.full((9, 9), 500 + number)) for number in range(3)] + [b"DPTH"]
    for number, data in enumerate(files):
        (tmp_path / f"{number}.dpth").write_bytes(data)
    records = [{"id": f"p{number}", "depths": [f"{number}.dpth"]} for number in range(4)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, records)))
    listing = [{"path": f"{number}.dpth", "kind": "depth"} for number in range(4)]
    (tmp_path / "media.jsonl").write_text("\n".join(map(json.dumps, listing)))
    return tmp_path


def test_shards_are_built_and_checked_with_a_plugin(run, catalogue):
    out = catalogue / "shards"
    building = (catalogue / "items.jsonl", "--out", out, "--ratios", 1, 0, 0)
    assert run("build_shards", *building, "--plugin", PLUGIN)[0] in (0, None)
    assert read_manifest(str(out)).split("train").presence_patterns == {"depth": 4}
    code, text, _ = run("lint_shards", out, "--plugin", PLUGIN)
    assert code == 0 and "no faults in 1 shards" in text
    code, _, error = run("lint_shards", out)
    assert code == 2 and error == f"error: {out}: unknown modalities depth; pass their --plugin\n"


def test_media_of_a_plugin_are_checked(run, catalogue):
    code, text, _ = run("check_media", catalogue / "media.jsonl", "--plugin", PLUGIN)
    assert code == 0 and text.splitlines()[:3] == [
        "absent   other=None 3.dpth: no depth map",
        "depth absent: 1",
        "depth decoded: 3",
    ]


def test_a_search_may_ask_for_a_plugins_modality(run):
    code, text, _ = run("search", "--plugin", PLUGIN, "--help")
    assert code == 0 and "--depth" in text and "--image" in text
    assert "--depth" not in run("search", "--help")[1]
    code, _, error = run("search", "--plugin", "none.py")
    assert code == 2 and error.startswith("error: command line: plugins: 'none.py' cannot be imported: ")
