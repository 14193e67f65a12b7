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
