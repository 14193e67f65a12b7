"""Build time, latency, memory and recall of the search indexes against exact search; appends rows to a CSV:

python tools/bench/search.py [--count 1000000] [--width 256] [--queries 1000] [--kinds flat,ivfpq,hnsw] --out FILE.csv

The vectors are a mixture of Gaussians around random centres, seeded; queries are perturbed members. Exact rows are
computed by `exact_topk` and verified against FAISS flat before anything is timed.
"""

import argparse
import os
import platform
import resource
import time
from pathlib import Path

import faiss
import numpy as np

from m5ds.cli import run_tool
from m5ds.downstream.search.index import build_index, exact_topk, recall_of, search
from m5ds.kernels.benchmarks.results import append_csv

BLOCK = 65536


def make_vectors(count: int, width: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32: gallery [count, width] around count / 1000 centres, and queries [queries, width]."""
    random = np.random.default_rng(0)
    centre_CD = random.standard_normal((max(16, count // 1000), width), dtype=np.float32)
    gallery_GD = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, BLOCK):
        stop = min(count, start + BLOCK)
        block = centre_CD[random.integers(0, len(centre_CD), stop - start)]
        block = block + 0.7 * random.standard_normal((stop - start, width), dtype=np.float32)
        gallery_GD[start:stop] = block / np.linalg.norm(block, axis=1, keepdims=True)
    query_QD = gallery_GD[random.permutation(count)[:queries]]
    query_QD = query_QD + 0.3 / width**0.5 * random.standard_normal(query_QD.shape, dtype=np.float32)
    return query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True), gallery_GD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kinds", default="flat,ivfpq,hnsw")
    parser.add_argument("--out", required=True, help="CSV file; rows are appended")
    arguments = parser.parse_args()
    query_QD, gallery_GD = make_vectors(arguments.count, arguments.width, arguments.queries)
    started = time.perf_counter()
    exact_scores, exact_QK = exact_topk(query_QD, gallery_GD, 10)
    print(f"exact_topk: {time.perf_counter() - started:.1f} s for {len(query_QD)} queries", flush=True)
    for kind in arguments.kinds.split(","):
        row = measure(kind, query_QD, gallery_GD, exact_QK, exact_scores)
        append_csv(Path(arguments.out), row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def measure(kind: str, query_QD, gallery_GD, exact_QK, exact_scores) -> dict[str, object]:
    """One row. `flat` must find what exact search finds, up to rounding of equal scores."""
    started = time.perf_counter()
    index = build_index(gallery_GD, kind)
    build = time.perf_counter() - started
    started = time.perf_counter()
    scores, rows = search(index, query_QD, 10)
    batch = time.perf_counter() - started
    if kind == "flat":
        np.testing.assert_allclose(scores, exact_scores, atol=1e-5)
    singles = []
    for query_D in query_QD[:200]:
        started = time.perf_counter()
        search(index, query_D[None], 10)
        singles.append(1000 * (time.perf_counter() - started))
    p20, p50, p80 = np.percentile(singles, [20, 50, 80])
    return {
        "kind": kind,
        "count": len(gallery_GD),
        "width": gallery_GD.shape[1],
        "queries": len(query_QD),
        "threads": faiss.omp_get_max_threads(),
        "build_s": round(build, 1),
        "batch_ms_per_query": round(1000 * batch / len(query_QD), 3),
        "p20_ms": round(p20, 3),
        "p50_ms": round(p50, 3),
        "p80_ms": round(p80, 3),
        "recall@10": round(recall_of(rows, exact_QK), 4),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "cpu": f"{platform.machine()} x{os.cpu_count()}",
        "faiss": faiss.__version__,
    }


if __name__ == "__main__":
    run_tool(main)
