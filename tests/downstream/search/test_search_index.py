"""Exact search and the FAISS indexes."""

import numpy as np
import pytest

from m5ds.downstream.search import index as search
from m5ds.downstream.search.index import IndexOptions, build_index, exact_topk, recall_of


@pytest.fixture(scope="module")
def clustered():
    """4,000 unit vectors around 60 centres, and 50 queries near some of them."""
    random = np.random.default_rng(0)
    centre_CD = random.normal(size=(60, 32))
    gallery_GD = centre_CD[random.integers(0, 60, 4000)] + 0.4 * random.normal(size=(4000, 32))
    query_QD = gallery_GD[random.permutation(4000)[:50]] + 0.1 * random.normal(size=(50, 32))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (query_QD, gallery_GD))


@pytest.mark.parametrize("k", [1, 7, 100])
def test_exact_search_equals_a_full_sort_in_any_blocks(clustered, monkeypatch, k):
    query_QD, gallery_GD = clustered
    score_QG = (query_QD.astype(np.float64) @ gallery_GD.astype(np.float64).T).astype(np.float32)
    order_QG = np.argsort(-score_QG, axis=1, kind="stable")[:, :k]
    for size in (64 << 20, 40_000, 3_000):
        monkeypatch.setattr(search, "_BLOCK_BYTES", size)
        scores_QK, rows_QK = exact_topk(query_QD, gallery_GD, k)
        np.testing.assert_array_equal(rows_QK, order_QG)
        np.testing.assert_array_equal(scores_QK, np.take_along_axis(score_QG, order_QG, 1))


def test_equal_vectors_tie_and_the_lower_row_wins_across_blocks(monkeypatch):
    random = np.random.default_rng(1)
    gallery_GD = np.tile(random.normal(size=(5, 24)).astype(np.float32), (40, 1))
    monkeypatch.setattr(search, "_BLOCK_BYTES", 24 * 8 * 7)
    scores_QK, rows_QK = exact_topk(random.normal(size=(6, 24)).astype(np.float32), gallery_GD, 60)
    assert (np.diff(scores_QK, axis=1) <= 0).all()
    for scores_K, rows_K in zip(scores_QK, rows_QK, strict=True):
        assert rows_K.tolist() == sorted(rows_K, key=lambda g: (-scores_K[rows_K.tolist().index(g)], g))
        assert (rows_K[:40] % 5 == rows_K[0] % 5).all()


def test_negative_zero_and_huge_scores_keep_their_order():
    gallery_GD = np.array([[-1e30], [1e30], [-0.0], [0.0], [-1e-30], [2.0]], dtype=np.float32)
    scores_QK, rows_QK = exact_topk(np.ones((1, 1), dtype=np.float32), gallery_GD, 6)
    assert rows_QK[0].tolist() == [1, 5, 2, 3, 4, 0]
    np.testing.assert_array_equal(scores_QK[0], gallery_GD[rows_QK[0], 0])


def test_fewer_products_than_k_give_them_all(clustered):
    query_QD, gallery_GD = clustered
    assert exact_topk(query_QD, gallery_GD[:3], 10)[1].shape == (50, 3)
    assert search.search(build_index(gallery_GD[:3], "flat"), query_QD, 10)[1].shape == (50, 3)


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.95), ("ivfpq", 0.8)])
def test_indexes_find_what_exact_search_finds(clustered, kind, least):
    query_QD, gallery_GD = clustered
    exact_scores_QK, exact_QK = exact_topk(query_QD, gallery_GD, 10)
    scores_QK, rows_QK = search.search(build_index(gallery_GD, kind), query_QD, 10)
    assert rows_QK.shape == (50, 10)
    assert recall_of(rows_QK, exact_QK) >= least
    assert (np.diff(scores_QK, axis=1) <= 0).all()
    np.testing.assert_allclose(scores_QK[:, 0].mean(), exact_scores_QK[:, 0].mean(), atol=0.02)


def test_scoring_candidates_again_improves_the_compressed_index(clustered):
    query_QD, gallery_GD = clustered
    exact_QK = exact_topk(query_QD, gallery_GD, 10)[1]
    recalls = [
        recall_of(
            search.search(build_index(gallery_GD, "ivfpq", IndexOptions(ivfpq_rerank=n)), query_QD, 10)[1], exact_QK
        )
        for n in (0, 8)
    ]
    assert recalls[1] > recalls[0]


def test_recall_counts_shared_rows():
    assert recall_of(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [3, 4]])) == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, g: exact_topk(q[:, :8], g, 5), "8 wide but the gallery 32.*one model"),
        (lambda q, g: exact_topk(q, g, 0), "k must be at least 1"),
        (lambda q, g: exact_topk(q, np.full_like(g, np.nan), 1), "gallery: a vector holds NaN"),
        (lambda q, g: exact_topk(q[0], g, 1), r"queries: vectors must be \[products, width\]"),
        (lambda q, g: build_index(g, "annoy"), "unknown index 'annoy'; use one of flat, ivfpq, hnsw"),
        (lambda q, g: build_index(g[:50], "ivfpq"), "at least 256 vectors.*use flat"),
        (lambda q, g: build_index(g, "ivfpq", IndexOptions(ivfpq_bytes=5)), "must divide"),
        (lambda q, g: search.search(build_index(g, "flat"), q[:, :8], 5), "8 wide"),
    ],
)
def test_unusable_vectors_are_refused_in_one_line(clustered, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(*clustered)
    assert "\n" not in str(error.value)
