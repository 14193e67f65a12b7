"""tools/find_leaks.py: a table of the attributes that tell the most."""

import importlib.util
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "find_leaks.py"


def test_the_tool_prints_a_row_an_attribute(shards, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("find_leaks_tool", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["find_leaks.py", str(shards), "--split", "validation", "--most", "2"])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("attribute"))
    assert lines[header].split() == ["attribute", "by", "products", "of", "all", "accuracy", "of", "seen", "commonest"]
    assert lines[header - 1].startswith("category_level leaf: ") and len(lines) == header + 3
