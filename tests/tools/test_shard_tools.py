"""The shard tools as a user runs them, on one small catalogue."""

import json
import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a tool with arguments; returns (exit code, stdout, stderr)."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def catalogue(tmp_path):
    (tmp_path / "media").mkdir()
    lines = []
    for number in range(40):
        (tmp_path / f"media/{number}.png").write_bytes(b"picture %d" % number)
        item = {
            "id": f"p{number}",
            "title": f"Red lamp {number} 红色 台灯",
            "attributes": {"Colour": "red", "Watt": number},
            "category": ["Home", f"c{number % 5}"],
            "images": [f"media/{number}.png"],
        }
        lines.append(json.dumps(item, ensure_ascii=False))
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def last_error(stderr: str) -> str:
    """The error's line, behind whatever the progress bar drew."""
    assert "Traceback" not in stderr
    return stderr.strip().splitlines()[-1]


def test_build_lint_describe_and_tokenise(run, catalogue, tmp_path):
    out = tmp_path / "shards"
    code, text, _ = run("build_shards", catalogue, "--out", out, "--shard-products", 20)
    assert code == 0 and "train: 32 products, 2 shards" in text
    code, text, _ = run("lint_shards", out)
    assert code == 0 and "no faults in 4 shards (train 32, validation 4, test 4)" in text
    code, text, _ = run("describe_shards", out, "--out", tmp_path / "report")
    assert code == 0 and "image+text+table" in text and "Gini" in text
    drawn = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert drawn == {
        "presence_patterns.png",
        "category_long_tail.png",
        "attributes_per_product.png",
        "title_lengths.png",
    }
    assert all((tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    code, text, _ = run("train_tokenizer", out, "--out", tmp_path / "tokenizer", "--vocab-size", 290)
    assert code == 0 and (tmp_path / "tokenizer/tokenizer.model").is_file() and "tokens" in text


def test_a_fault_is_named_and_ends_with_code_2(run, catalogue, tmp_path):
    run("build_shards", catalogue, "--out", tmp_path / "shards")
    tar = tmp_path / "shards/train/000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    code, text, _ = run("lint_shards", tmp_path / "shards")
    assert code == 2 and "train/000000.tar: bytes do not match the manifest" in text and "1 faults" in text


def test_bad_input_is_one_line_and_code_2(run, catalogue, tmp_path):
    shards = tmp_path / "shards"
    assert run("lint_shards", tmp_path / "nowhere")[0] == 2
    catalogue.write_text(catalogue.read_text() + "\n{oops\n")
    code, _, stderr = run("build_shards", catalogue, "--out", shards)
    assert code == 2 and last_error(stderr).startswith(f"error: {catalogue}:41: not JSON")
    code, _, stderr = run("build_shards", tmp_path / "none.jsonl", "--out", shards)
    assert code == 2 and "no such catalogue file" in last_error(stderr)
    code, _, stderr = run("build_shards", catalogue, "--out", shards, "--ratios", 0.5, 0.1, 0.1)
    assert code == 2 and "add up to 1" in last_error(stderr)
    code, _, stderr = run("train_tokenizer", shards, "--out", tmp_path / "t.model")
    assert code == 2 and "manifest.json: no such file" in last_error(stderr)
    code, _, stderr = run("describe_shards", shards)
    assert code == 2 and "manifest.json: no such file" in last_error(stderr)


def test_every_tool_tells_media_of_several_splits_and_grouping_removes_them(run, catalogue, tmp_path):
    for number in range(0, 30, 3):
        (tmp_path / f"media/{number + 1}.png").write_bytes((tmp_path / f"media/{number}.png").read_bytes())
    for number in range(30, 40):
        (tmp_path / f"media/{number}.png").write_bytes(b"no picture")
    shards, grouped = tmp_path / "shards", tmp_path / "grouped"
    code, built, _ = run("build_shards", catalogue, "--out", shards, "--placeholder-products", 9)
    assert code == 0 and "byte-equal media in several splits (image " in built and "--group-by-content" in built
    assert "1 more contents of over 9 products each" in built and "  10 products, image: train 'p" in built
    told = [line for line in built.splitlines() if "products, image: " in line]
    assert told and all(" = " in line and ".image.0.png" in line for line in told)
    for tool in (("lint_shards", shards), ("find_leaks", shards, "--category-level", 1)):
        code, text, _ = run(*tool)
        assert code == 0 and all(line in text for line in told), text
    code, text, _ = run("build_shards", catalogue, "--out", grouped, "--group-by-content", "--placeholder-products", 9)
    assert code == 0 and "byte-equal media" not in text and "1 more contents of over 9 products" in text
    code, text, _ = run("lint_shards", grouped)
    assert code == 0 and "no faults" in text


def test_leaks_are_looked_for_at_a_level_and_unseen_categories_are_named(run, tmp_path):
    """Leaves are products' own, so none of the tested is known; the top level tells what colour they have."""
    lines = []
    for number in range(60):
        item = {"id": f"p{number}", "title": "t", "attributes": {"Colour": ["red", "blue"][number % 2]}}
        lines.append(json.dumps(item | {"category": [["Reds", "Blues"][number % 2], f"leaf {number}"]}))
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    run("build_shards", tmp_path / "items.jsonl", "--out", tmp_path / "shards")
    code, text, _ = run("find_leaks", tmp_path / "shards")
    assert code == 0 and "category_level leaf: 6 categories in test. 6 of 6 tested categories are unseen" in text
    assert text.splitlines()[-1].split() == ["Colour", "value", "6", "1.00", "0.000", "-", "0.000"]
    code, text, _ = run("find_leaks", tmp_path / "shards", "--category-level", 1)
    assert code == 0 and "category_level 1: 2 categories in test." in text and "unseen" not in text
    assert text.splitlines()[-1].split()[:6] == ["Colour", "value", "6", "1.00", "1.000", "1.000"]
    code, _, stderr = run("find_leaks", tmp_path / "shards", "--category-level", 3)
    assert code == 2 and "must be leaf or between 1 and 2" in last_error(stderr)
    code, _, stderr = run("find_leaks", tmp_path / "shards", "--category-level", "top")
    assert code == 2 and "--category-level must be leaf or a number" in last_error(stderr)
