"""tools/bench/search.py writes one row an index, and its vectors can be searched."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def test_each_index_is_measured_once(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_search_tool", ROOT / "tools" / "bench" / "search.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = tmp_path / "search.csv"
    arguments = ["--count", "3000", "--width", "32", "--queries", "20", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    tool.main()
    rows = list(csv.DictReader(out.open()))
    assert [row["kind"] for row in rows] == ["flat", "ivfpq", "hnsw"]
    assert float(rows[0]["recall@10"]) > 0.999
    assert all(0 < float(row["recall@10"]) <= 1 and float(row["p50_ms"]) > 0 for row in rows)
    query_QD, gallery_GD = tool.make_vectors(1000, 16, 10)
    np.testing.assert_allclose(np.linalg.norm(gallery_GD, axis=1), 1, atol=1e-5)
    assert query_QD.shape == (10, 16)
