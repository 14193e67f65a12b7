"""Nearest products: exact top-k in blocks, and FAISS indexes behind one function.

The score is the inner product, so L2-normalised vectors give cosines. Shape letters: Q queries, G gallery products, D
width, K top-k.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["flat", "ivfpq", "hnsw"]

_BLOCK_BYTES = 64 << 20
_ADD_ROWS = 65536
_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexOptions:
    """FAISS settings; each applies to the kind it names. None: chosen from the gallery's size and width."""

    ivfpq_lists: int | None = None
    """Coarse cells; 4 sqrt(G) by default, less where G is small (FAISS wants about 39 training rows a cell)."""
    ivfpq_bytes: int | None = None
    """Bytes of a product code, a divisor of D; D / 4 by default, at most 64."""
    ivfpq_probes: int | None = None
    """Cells searched; one in 16 by default."""
    ivfpq_rerank: int = 8
    """Candidates per result that are scored again with the gallery's own vectors; 0: none."""
    hnsw_links: int = 32
    hnsw_build: int = 80
    """Beam width of construction."""
    hnsw_search: int = 128
    """Beam width of search."""


@dataclass(frozen=True, slots=True)
class Index:
    """A FAISS index over G vectors of width D, with the vectors where it scores candidates again."""

    kind: Kind
    faiss_index: faiss.Index
    vectors_GD: NDArray[np.float32]
    rerank: int

    @property
    def num_vectors(self) -> int:
        return self.faiss_index.ntotal


def check_vectors(vectors: NDArray[np.floating], name: str) -> None:
    """`ValueError` unless the vectors are a finite [N, D] array with D >= 1."""
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise ValueError(f"{name}: vectors must be [products, width], got shape {vectors.shape}")
    for start in range(0, len(vectors), _ADD_ROWS):
        if not np.isfinite(vectors[start : start + _ADD_ROWS]).all():
            raise ValueError(f"{name}: a vector holds NaN or infinity; embed again from a sound checkpoint")


def _check_pair(queries_QD: NDArray[np.floating], gallery_GD: NDArray[np.floating], k: int) -> None:
    check_vectors(queries_QD, "queries")
    if queries_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(
            f"queries are {queries_QD.shape[1]} wide but the gallery {gallery_GD.shape[1]}; embed both with one model"
            " and the same modalities and operation"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _sortable(score: Tensor, index: Tensor) -> Tensor:
    """int64 keys whose order is that of (score, -index), so that equal scores prefer the lower index."""
    bits = (score + 0.0).view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return (ordered << _INDEX_BITS) | (_INDEX_MASK - index)


def _unpack(key: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    ordered = key >> _INDEX_BITS
    bits = np.where(ordered >= 0, ordered, (-ordered) | (1 << 31))
    return bits.astype(np.uint32).view(np.float32), _INDEX_MASK - (key & _INDEX_MASK)


def exact_topk(
    queries_QD: NDArray[np.floating], gallery_GD: NDArray[np.floating], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k gallery rows of highest inner product of each query: scores [Q, K] and rows [Q, K], K = min(k, G).

    Products are summed in float64 and rounded once to float32, so that equal vectors tie whatever block they are in;
    of equal scores the lower row comes first. Works in blocks of bounded memory, on the GPU where there is one.
    `ValueError` for unequal widths.
    """
    check_vectors(gallery_GD, "gallery")
    _check_pair(queries_QD, gallery_GD, k)
    assert len(gallery_GD) <= _INDEX_MASK
    k = min(k, len(gallery_GD))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gallery_step = max(1, min(len(gallery_GD), _BLOCK_BYTES // (8 * queries_QD.shape[1])))
    query_step = max(1, _BLOCK_BYTES // (8 * gallery_step))
    best_QK = np.empty((len(queries_QD), k), dtype=np.int64)
    for q in range(0, len(queries_QD), query_step):
        block_QD = _float64(queries_QD[q : q + query_step], device)
        keys_QK = torch.empty((len(block_QD), 0), dtype=torch.int64, device=device)
        for g in range(0, len(gallery_GD), gallery_step):
            score_QG = (block_QD @ _float64(gallery_GD[g : g + gallery_step], device).T).float()
            rows_G = torch.arange(g, g + score_QG.shape[1], device=device)
            keys_QK = torch.cat([keys_QK, _sortable(score_QG, rows_G)], 1)
            keys_QK = keys_QK.topk(min(k, keys_QK.shape[1]), dim=1).values
        best_QK[q : q + query_step] = keys_QK.cpu().numpy()
    return _unpack(best_QK)


def _float64(vectors: NDArray[np.floating], device: torch.device) -> Tensor:
    return torch.from_numpy(vectors.astype(np.float64)).to(device)


def build_index(vectors_GD: NDArray[np.floating], kind: Kind, options: IndexOptions | None = None) -> Index:
    """A FAISS inner-product index over the vectors: `flat` (exact), `ivfpq` (compressed) or `hnsw` (graph).

    Clustering of `ivfpq` trains on a fixed sample; `ValueError` for an unknown kind or too few vectors for it.
    """
    options = options or IndexOptions()
    if kind not in get_args(Kind):
        raise ValueError(f"unknown index {kind!r}; use one of {', '.join(get_args(Kind))}")
    check_vectors(vectors_GD, "gallery")
    num_vectors, width = vectors_GD.shape
    vectors_GD = np.ascontiguousarray(vectors_GD, dtype=np.float32)
    if kind == "flat":
        index: faiss.Index = faiss.IndexFlatIP(width)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, options.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = options.hnsw_build, options.hnsw_search
    else:
        index = _trained_ivfpq(vectors_GD, options)
    for start in range(0, num_vectors, _ADD_ROWS):
        index.add(vectors_GD[start : start + _ADD_ROWS])
    return Index(kind, index, vectors_GD, options.ivfpq_rerank if kind == "ivfpq" else 0)


def _trained_ivfpq(vectors_GD: NDArray[np.float32], options: IndexOptions) -> faiss.Index:
    num_vectors, width = vectors_GD.shape
    if num_vectors < 256:
        raise ValueError(f"an ivfpq index needs at least 256 vectors to train, got {num_vectors}; use flat")
    lists = options.ivfpq_lists or min(int(4 * num_vectors**0.5), num_vectors // 39)
    size = options.ivfpq_bytes or next(n for n in range(min(64, max(1, width // 4)), 0, -1) if width % n == 0)
    if width % size:
        raise ValueError(f"ivfpq_bytes {size} must divide the vectors' width {width}")
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFPQ(quantizer, width, lists, size, 8, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = options.ivfpq_probes or max(1, lists // 16)
    index.cp.max_points_per_centroid = 64
    sample_rows = np.linspace(0, num_vectors - 1, min(num_vectors, max(64 * lists, 16384)), dtype=np.int64)
    index.train(vectors_GD[sample_rows])
    return index


def search(index: Index, queries_QD: NDArray[np.floating], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and gallery rows [Q, K] of the k nearest, best first, equal scores by row; row -1 and -inf past the end.

    K = min(k, G). An `ivfpq` index scores k * rerank candidates again with the full vectors.
    """
    _check_pair(queries_QD, index.vectors_GD, k)
    k = min(k, index.num_vectors)
    queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
    depth = min(index.num_vectors, k * max(1, index.rerank))
    scores_QK, rows_QK = index.faiss_index.search(queries_QD, depth)
    if index.rerank:
        for q, rows in enumerate(rows_QK):
            scores_QK[q] = index.vectors_GD[rows] @ queries_QD[q]
    scores_QK = np.where(rows_QK >= 0, scores_QK, -np.inf).astype(np.float32)
    order = np.lexsort((rows_QK, -scores_QK), axis=1)[:, :k]
    return np.take_along_axis(scores_QK, order, 1), np.take_along_axis(rows_QK.astype(np.int64), order, 1)


def recall_of(approximate_QK: NDArray[np.int64], exact_QK: NDArray[np.int64]) -> float:
    """Mean share of the exact rows that the approximate search found."""
    if approximate_QK.shape[0] != exact_QK.shape[0]:
        raise ValueError(f"{len(approximate_QK)} approximate results but {len(exact_QK)} exact ones")
    found = [len(np.intersect1d(a, b)) for a, b in zip(approximate_QK, exact_QK, strict=True)]
    return float(np.mean(found) / exact_QK.shape[1])
