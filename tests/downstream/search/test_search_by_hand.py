"""Search in small, by hand: keys, blocks, the indexes' settings, and candidates that are scored again."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m5ds.downstream.search import index as search
from m5ds.downstream.search.index import Index, IndexOptions, build_index, check_vectors, exact_topk, recall_of


def test_keys_are_ordered_by_score_then_row_and_give_both_back():
    scores = [3.0e38, 2.5, 1e-40, 0.0, -1e-40, -2.5, -3.0e38]
    score_N = torch.tensor(scores, dtype=torch.float32)
    for row in (0, 1, search._INDEX_MASK):
        keys = search._sortable(score_N, torch.full((7,), row))
        assert (keys.diff() < 0).all()
        found, rows = search._unpack(keys.numpy())
        np.testing.assert_array_equal(found, score_N.numpy())
        assert (rows == row).all()
    # Equal scores, both zeros among them, prefer the lower row; a lower score never wins by its row.
    for equal in (torch.tensor([1.5, 1.5]), torch.tensor([-1.5, -1.5]), torch.tensor([-0.0, 0.0])):
        assert search._sortable(equal, torch.tensor([4, 9])).diff() < 0
    assert search._sortable(torch.tensor([1.0, 1.5]), torch.tensor([0, search._INDEX_MASK])).diff() > 0
    assert search._INDEX_MASK == 2**32 - 1


def test_products_are_summed_in_float64_and_rounded_once():
    gallery_GD = np.array([[1e8, 1.0, -1e8], [1e8, 1.0, 0.0]], dtype=np.float32)
    scores_QK, rows_QK = exact_topk(np.ones((1, 3), dtype=np.float32), gallery_GD, 2)
    assert rows_QK.tolist() == [[1, 0]] and scores_QK[0, 1] == 1.0
    assert scores_QK.dtype == np.float32 and rows_QK.dtype == np.int64


@pytest.mark.parametrize(
    ("limit", "gallery_blocks", "query_blocks"),
    [
        (10_000, [6], [5]),
        (8 * 4 * 3, [3], [4, 1]),  # three vectors, then four rows of three scores
        (8 * 4 * 2, [2], [4, 1]),
        (8 * 4 * 6 - 1, [5, 1], [4, 1]),
        (1, [1], [1]),
    ],
)
def test_blocks_are_as_large_as_the_memory_allows(limit, gallery_blocks, query_blocks, monkeypatch):
    sizes = {"gallery": [], "queries": []}

    def recorded(vectors, device, real=search._float64):
        sizes["gallery" if vectors[0, 0] == 7 else "queries"].append(len(vectors))
        return real(vectors, device)

    monkeypatch.setattr(search, "_float64", recorded)
    monkeypatch.setattr(search, "_BLOCK_BYTES", limit)
    exact_topk(np.ones((5, 4), np.float32), np.full((6, 4), 7, np.float32), 2)
    assert sorted(set(sizes["gallery"])) == sorted(set(gallery_blocks))
    assert sorted(set(sizes["queries"])) == sorted(set(query_blocks))
    assert sum(sizes["queries"]) == 5 and sum(sizes["gallery"]) == 6 * len(sizes["queries"])


def test_vectors_are_checked_in_all_their_rows(monkeypatch):
    monkeypatch.setattr(search, "_ADD_ROWS", 2)
    check_vectors(np.zeros((5, 1)), "x")
    check_vectors(np.zeros((0, 1)), "x")
    for row in range(5):
        bad = np.zeros((5, 3))
        bad[row, 2] = np.inf
        with pytest.raises(ValueError, match="x: a vector holds NaN or infinity"):
            check_vectors(bad, "x")
    for shape in ((3,), (3, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="x: vectors must be"):
            check_vectors(np.zeros(shape), "x")


class Recorder:
    """In the place of a FAISS index: what it was made with, trained on and given."""

    def __init__(self, *arguments):
        self.arguments, self.added, self.trained = arguments, [], None
        self.cp, self.hnsw, self.nprobe = SimpleNamespace(), SimpleNamespace(), None

    def train(self, vectors):
        self.trained = vectors

    def add(self, vectors):
        self.added.append(vectors.copy())

    @property
    def ntotal(self):
        return sum(map(len, self.added))


@pytest.fixture
def recorded(monkeypatch):
    for name in ("IndexFlatIP", "IndexHNSWFlat", "IndexIVFPQ"):
        monkeypatch.setattr(search.faiss, name, Recorder)


def numbered(count, width=8):
    vectors = np.zeros((count, width), dtype=np.float32)
    vectors[:, 0] = np.arange(count)
    return vectors


def test_every_vector_is_added_once_and_in_order(recorded, monkeypatch):
    monkeypatch.setattr(search, "_ADD_ROWS", 3)
    for kind in ("flat", "hnsw"):
        index = build_index(numbered(7).astype(np.float64), kind)
        assert [len(part) for part in index.faiss_index.added] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate(index.faiss_index.added), numbered(7))
        assert index.faiss_index.added[0].dtype == np.float32 == index.vectors_GD.dtype
        assert (index.kind, index.rerank, index.num_vectors) == (kind, 0, 7)


def test_a_graph_index_has_the_documented_settings(recorded):
    index = build_index(numbered(4), "hnsw").faiss_index
    assert index.arguments == (8, 32, search.faiss.METRIC_INNER_PRODUCT)
    assert (index.hnsw.efConstruction, index.hnsw.efSearch) == (80, 128)
    options = IndexOptions(hnsw_links=5, hnsw_build=6, hnsw_search=7)
    index = build_index(numbered(4), "hnsw", options).faiss_index
    assert (index.arguments[1], index.hnsw.efConstruction, index.hnsw.efSearch) == (5, 6, 7)


@pytest.mark.parametrize(
    ("count", "width", "lists", "size", "probes"),
    [
        (256, 8, 6, 2, 1),  # 39 training rows a cell
        (20_000, 8, 512, 2, 32),  # as many cells as 39 rows each allow
        (40_000, 8, 800, 2, 50),  # 4 sqrt(G) cells
        (256, 3, 6, 1, 1),
        (256, 10, 6, 2, 1),
        (256, 14, 6, 2, 1),  # 3 does not divide 14
        (256, 24, 6, 6, 1),
        (256, 260, 6, 52, 1),
        (256, 512, 6, 64, 1),
    ],
)
def test_a_compressed_index_chooses_its_cells_and_code_from_the_gallery(recorded, count, width, lists, size, probes):
    index = build_index(numbered(count, width), "ivfpq")
    made = index.faiss_index
    assert made.arguments[0].arguments == (width,)
    assert made.arguments[1:] == (width, lists, size, 8, search.faiss.METRIC_INNER_PRODUCT)
    assert (made.nprobe, made.cp.max_points_per_centroid, index.rerank) == (probes, 64, 8)
    rows = made.trained[:, 0].astype(int).tolist()
    wanted = min(count, max(64 * lists, 16384))
    assert len(rows) == wanted and (rows[0], rows[-1]) == (0, count - 1)
    assert max(np.diff(rows)) <= -(-(count - 1) // (wanted - 1))


def test_given_settings_of_a_compressed_index_are_kept(recorded):
    options = IndexOptions(ivfpq_lists=3, ivfpq_bytes=4, ivfpq_probes=2, ivfpq_rerank=0)
    index = build_index(numbered(256), "ivfpq", options)
    assert index.faiss_index.arguments[2:4] == (3, 4)
    assert (index.faiss_index.nprobe, index.rerank) == (2, 0)
    few = build_index(numbered(20_000), "ivfpq", IndexOptions(ivfpq_lists=4)).faiss_index
    assert len(few.trained) == 16384
    with pytest.raises(ValueError, match="at least 256 vectors to train, got 255"):
        build_index(numbered(255), "ivfpq")


class Approximate:
    """Finds these rows with these scores; remembers how many were asked for."""

    def __init__(self, scores, rows, total):
        self.answer = np.array([scores], np.float32), np.array([rows], np.int64)
        self.ntotal, self.depth = total, None

    def search(self, queries_QD, depth):
        self.depth = depth
        return tuple(part[:, :depth].copy() for part in self.answer)


def test_candidates_are_scored_again_with_their_own_vectors():
    vectors_GD = np.array([[1.0], [5.0], [3.0], [5.0], [4.0], [0.5]], dtype=np.float32)
    found = Approximate([9, 8, 7, 6], [3, 0, 1, 2], total=6)
    scores_QK, rows_QK = search.search(Index("ivfpq", found, vectors_GD, 2), np.full((1, 1), 2.0), 2)
    assert found.depth == 4
    assert (rows_QK.tolist(), scores_QK.tolist()) == ([[1, 3]], [[10.0, 10.0]])
    search.search(Index("ivfpq", found, vectors_GD, 4), np.ones((1, 1)), 2)
    assert found.depth == 6  # no more than there are
    search.search(Index("ivfpq", found, vectors_GD, 4), np.ones((1, 1)), 1)
    assert found.depth == 4


def test_places_past_the_end_have_row_minus_one_and_come_last():
    vectors_GD = np.array([[-1.0], [-2.0], [-3.0]], dtype=np.float32)
    for rerank, scores in ((2, [[-1.0, -3.0]]), (0, [[-1.0, -9.0]])):
        found = Approximate([5, -9, -1], [-1, 2, 0], total=3)
        got, rows_QK = search.search(Index("ivfpq", found, vectors_GD, rerank), np.ones((1, 1)), 3)
        assert rows_QK.tolist() == [[0, 2, -1]]
        assert got[:, :2].tolist() == scores and got[0, 2] == -np.inf
        assert got.dtype == np.float32 and rows_QK.dtype == np.int64
        assert found.depth == 3


def test_recall_is_the_share_of_the_exact_rows():
    assert recall_of(np.array([[1, 2, 3, 4]]), np.array([[4, 9]])) == 0.5
    with pytest.raises(ValueError, match="2 approximate results but 1 exact ones"):
        recall_of(np.zeros((2, 1), int), np.zeros((1, 1), int))
