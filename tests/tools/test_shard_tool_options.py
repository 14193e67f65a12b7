"""Options of the shard tools: each reaches what it is for, and what is printed is counted."""

import csv
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from m5ds.data.catalogue import synthetic_media as media
from m5ds.data.catalogue.records import CatalogueOptions
from m5ds.data.shards import build as shards_module
from m5ds.data.shards.build import BuildOptions

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a tool with arguments; returns (exit code, stdout)."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")
        return stop.value.code, capsys.readouterr().out

    return run


@pytest.fixture
def asked(monkeypatch):
    """What build_shards.py asks for."""
    calls = []

    def build(*given, **named):
        calls.append((given, named))
        raise ValueError("that is all")

    monkeypatch.setattr(shards_module, "build_shards", build)
    return calls


def test_options_of_a_build_reach_it(run, asked):
    assert run("build_shards", "items.jsonl", "--out", "DIR")[0] == 2
    assert asked[0] == ((Path("items.jsonl"), Path("DIR"), BuildOptions()), {"overwrite": False, "progress": True})
    options = "--format parquet --media M --group-key shelf --ratios 0.5 0.25 0.25 --shard-products 7 --seed 3"
    options += " --language zh --missing-media absent --max-media-per-modality 2 --audio-from-video"
    options += " --group-by-content --placeholder-products 9 --overwrite"
    run("build_shards", "items.x", "--out", "DIR", *options.split())
    expected = BuildOptions(
        catalogue=CatalogueOptions(
            format="parquet", media=Path("M"), group_key="shelf", language="zh", missing_media="absent"
        ),
        ratios=(0.5, 0.25, 0.25),
        shard_products=7,
        seed=3,
        max_media_per_modality=2,
        audio_from_video=True,
        group_by_content=True,
        placeholder_products=9,
    )
    assert asked[1] == ((Path("items.x"), Path("DIR"), expected), {"overwrite": True, "progress": True})


@pytest.fixture
def catalogue(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(250_000))
    lines = [{"id": f"p{n}", "title": f"red lamp {n}", "images": ["a.png"] if n == 1 else []} for n in range(10)]
    lines[0]["images"] = ["gone.png"]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_build_says_how_much_it_wrote_and_what_was_missing(run, catalogue, tmp_path):
    options = ("--missing-media", "absent", "--ratios", 1, 0, 0, "--shard-products", 4)
    code, text = run("build_shards", catalogue, "--out", tmp_path / "out", *options)
    assert code == 0
    size = sum(path.stat().st_size for path in (tmp_path / "out/train").glob("*.tar"))
    lines = text.splitlines()
    assert lines[0] == f"train: 10 products, 3 shards, {size / 1e6:.1f} MB" and size > 250_000
    assert lines[1] == f"1 listed files are missing: {tmp_path}/out/missing_media.jsonl"
    assert lines[2].startswith("manifest ") and len(lines) == 3
    assert len(lines[2].split()[1]) == 16 and lines[2].endswith(f" in {tmp_path}/out")
    code, text = run("lint_shards", tmp_path / "out")
    assert code == 0 and text == f"{tmp_path}/out: no faults in 3 shards (train 10), {' '.join(lines[2].split()[:2])}\n"
    code, text = run("describe_shards", tmp_path / "out", "--out", tmp_path / "report")
    shown, _, last = text.rstrip("\n").rpartition("\n\n")
    assert last == f"4 plots and tables.txt in {tmp_path}/report"
    assert (tmp_path / "report/tables.txt").read_text() == shown + "\n"


def test_options_of_a_tokenizer_reach_its_training(run, catalogue, tmp_path, monkeypatch):
    run("build_shards", catalogue, "--out", tmp_path / "out", "--missing-media", "absent", "--ratios", 1, 0, 0)
    from m5ds.data import tokenizer

    trained = []
    made = SimpleNamespace(vocab_size=77, encode=str.split)
    monkeypatch.setattr(
        tokenizer, "train_tokenizer", lambda texts, *given, **named: trained.append((list(texts), given, named)) or made
    )
    code, text = run("train_tokenizer", tmp_path / "out", "--out", tmp_path / "t")
    titles = [sentence for sentence in trained[0][0] if sentence]
    assert code == 0 and len(titles) == 10 and trained[0][1:] == ((8000, tmp_path / "t"), {"num_threads": 1})
    assert text == f"{tmp_path}/t: 77 tokens; {titles[0]!r} is 3 of them\n"
    options = ("--vocab-size", 99, "--max-products", 4, "--num-threads", 2)
    run("train_tokenizer", tmp_path / "out", "--out", tmp_path / "t", *options)
    assert [sentence for sentence in trained[1][0] if sentence] == titles[:4]
    assert trained[1][1:] == ((99, tmp_path / "t"), {"num_threads": 2})


def test_check_media_tells_what_became_of_every_file(run, tmp_path):
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    files = {
        "a.png": media.encode_png(frames[0]),
        "bad.jpg": b"\xff\xd8junk",
        "c.mp4": media.encode_clip(frames, "h264"),
        "d.wav": media.encode_wav(np.zeros(16000, np.float32)),
        "e.png": media.encode_png(frames[1]),
    }
    kinds = {"a.png": "image", "bad.jpg": "image", "e.png": "image", "c.mp4": "video", "d.wav": "audio"}
    others = {"a.png": {"pillow": {"ok": False}}, "bad.jpg": {"ffmpeg": {"ok": True}, "what": "noise"}}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    lines = [{"path": name, "kind": kinds[name], **others.get(name, {})} for name in files]
    (tmp_path / "media.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for batch in ((), ("--batch", 1)):
        code, text = run("check_media", tmp_path / "media.jsonl", "--csv", tmp_path / "new" / "out.csv", *batch)
        assert code == 0
        shown = text.splitlines()
        assert shown[0] == "decoded  other=False a.png: " and shown[1].startswith("absent   other=True bad.jpg: ")
        assert shown[2:6] == ["audio decoded: 1", "image absent: 1", "image decoded: 2", "video decoded: 1"]
        assert shown[6].startswith("peak memory ") and len(shown) == 7
        with (tmp_path / "new/out.csv").open() as file:
            table = list(csv.reader(file))
        assert table[0] == ["path", "kind", "what", "outcome", "other_decoder_ok", "reason"]
        assert [row[:5] for row in table[1:]] == [
            ["a.png", "image", "", "decoded", "False"],
            ["bad.jpg", "image", "noise", "absent", "True"],
            ["e.png", "image", "", "decoded", ""],
            ["c.mp4", "video", "", "decoded", ""],
            ["d.wav", "audio", "", "decoded", ""],
        ]
        assert [bool(row[5]) for row in table[1:]] == [False, True, False, False, False]
