"""Baselines by hand: words, colours, votes, and which results there are."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import embedding_set
from PIL import Image

from m5ds.data.shards.reader import Media, RawProduct
from m5ds.downstream.settings import DownstreamConfig, RetrievalConfig
from m5ds.downstream.tasks import baseline_jobs, baselines

NAMES = ("image", "text", "table")


def product(name="p", label=0, title="", attributes=(), image=None, group="", present=("text", "table", "image")):
    return RawProduct(
        id=name,
        product=0,
        title=title,
        description="",
        attributes=list(attributes),
        category=[],
        label=label,
        present=frozenset(present),
        media={} if image is None else {"image": [Media("m", image)]},
        group=group,
    )


def picture(*colors):
    image = Image.new("RGB", (64, 64 * len(colors)))
    for row, color in enumerate(colors):
        image.paste(color, (0, 64 * row, 64, 64 * row + 64))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_words_are_the_text_and_each_pair_as_one_word_too():
    text = baselines.words(product(title="red lamp", attributes=[("trim color", "dark red"), ("W", "5")]))
    assert text == "red lamp  trim color dark red trim_color=dark_red W 5 W=5"


def test_terms_are_weighed_by_rarity_with_sublinear_counts_of_at_most_so_many(monkeypatch):
    train = [product(title="a b"), product(title="a c c c")]
    (vector_W,) = baselines.tf_idf(train)([product(title="a c c c unknown")])
    rare = np.log(3 / 2) + 1
    expected = np.array([1.0, 0.0, (1 + np.log(3)) * rare])
    np.testing.assert_allclose(vector_W, expected / np.linalg.norm(expected), rtol=1e-5)
    assert vector_W.dtype == np.float32 and baselines.MAX_TERMS == 8192
    monkeypatch.setattr(baselines, "MAX_TERMS", 2)
    assert baselines.tf_idf(train)([product(title="b")]).shape == (1, 2)
    assert baselines.tf_idf([product(title="x-y (z)")])([product(title="x-y")]).shape == (1, 2)


def test_colours_are_counted_in_eight_steps_a_channel():
    half = picture((255, 31, 32), (0, 0, 0))
    histogram_W, broken_W, absent_W = baselines.color_histogram([])(
        [product(image=half), product(image=b"no picture"), product()]
    )
    assert histogram_W.shape == (512,) and histogram_W.dtype == np.float32
    places = np.flatnonzero(histogram_W > 0.6)
    assert places.tolist() == [0, 7 * 64 + 0 * 8 + 1]
    assert np.square(histogram_W).sum() == pytest.approx(1)
    assert not broken_W.any() and not absent_W.any()


def test_vectors_come_as_a_set_that_says_who_lacks_what():
    products = [product("b", 3, group="g"), product("a", 4, present=("text", "image"))]
    vectors = np.array([[0.0, 0.0], [0.6, 0.8]], np.float32)
    found = baselines.embed("tf-idf", lambda given: vectors, products, "test", "hash", NAMES)
    assert (found.ids, found.label_N.tolist(), found.group) == (("b", "a"), [3, 4], ("g", ""))
    assert found.present_NM.tolist() == [[True, False, False], [True, True, False]]
    info = found.info
    assert (info.model, info.data, info.split, info.operation, info.normalized) == (
        "tf-idf",
        "hash",
        "test",
        "sum",
        True,
    )
    assert (info.width, info.num_products, info.modalities, info.model_modalities) == (2, 2, ("text", "table"), NAMES)
    colors = baselines.embed("color histogram", lambda given: vectors, products, "test", "hash", NAMES)
    assert colors.info.modalities == ("image",)
    assert colors.present_NM.tolist() == [[False, True, True], [True, True, False]]


def test_the_five_nearest_vote_with_their_similarity():
    assert baselines.NEIGHBOURS == 5
    angles = np.radians([0, 20, 40, 60, 100, 120, 0, 0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    present = np.array([[1, 1, 1]] * 7 + [[0, 0, 0]], bool)
    train = embedding_set(vectors, [0, 1, 1, 0, 2, 2, -1, 1], present_NM=present)
    test = embedding_set([[1, 0], [0, -1]], ids=["z", "y"])
    votes_NC = baselines.nearest_votes(train, test, 4)
    cos = np.cos(np.radians([0, 20, 40, 60]))
    np.testing.assert_allclose(votes_NC, [[cos[0] + cos[3], cos[1] + cos[2], 0, 0], [0, 0, 0, 0]], atol=1e-6)
    assert votes_NC.dtype == np.float32


def test_products_are_read_shard_by_shard(monkeypatch):
    class Reader:
        shard_sizes, closed = (2, 1), 0

        def __init__(self, shards, split):
            assert (shards, split) == ("s", "test")

        def read(self, shard, index):
            return shard, index

        def close(self):
            Reader.closed += 1

    monkeypatch.setattr(baselines, "ShardReader", Reader)
    assert list(baselines.read_products("s", "test")) == [(0, 0), (0, 1), (1, 0)]
    assert list(baselines.read_products("s", "test", sum)) == [0, 1, 1] and Reader.closed == 2


@pytest.fixture
def judged(monkeypatch):
    """Runs a baseline's tasks over recorders."""
    calls = SimpleNamespace(asked=[], products=[])

    def fit(train):
        assert len(train) == 4
        return "vectorizer"

    def embed(name, vectorizer, products, split, manifest_hash, names):
        assert (vectorizer, manifest_hash, names) == ("vectorizer", "hash", NAMES)
        ids = [f"{split} {i}" for i in range(len(products))]
        info = {"split": split, "modalities": baselines.BASELINES[name][0]}
        return embedding_set(np.eye(len(products)), ids=ids, **info)

    def task(name, answer):
        monkeypatch.setattr(baseline_jobs.tasks, name, lambda *given: calls.asked.append((name, given)) or answer)

    task("coarse_retrieval", (["c"], {"examples": 1}))
    task("clustering", ["k"])
    task("classification", "t")
    task("instance_retrieval", (["i"], {"examples": 2}))
    monkeypatch.setattr(baseline_jobs, "embed", embed)
    monkeypatch.setattr(baseline_jobs, "projection", lambda products: len(products))
    monkeypatch.setattr(baseline_jobs, "needed_splits", lambda evaluation: ["train", "validation", "test"])
    monkeypatch.setattr(baseline_jobs, "use_file", lambda number: f"file {number}")
    monkeypatch.setattr(
        baseline_jobs, "nearest_votes", lambda train, test, count: np.array([[len(train), len(test), count]])
    )
    monkeypatch.setattr(
        baseline_jobs,
        "label_tables",
        lambda evaluation, sets, fractions, *, standardized: (
            [{split: len(products) for split, products in sets.items()}, fractions, standardized], {"u": "v"}
        ),
    )  # fmt: skip
    for name, (modalities, _) in baselines.BASELINES.items():
        monkeypatch.setitem(baselines.BASELINES, name, (modalities, fit))

    def products(split, transform=None):
        calls.products.append((split, transform))
        return iter("x" * {"train": 4, "validation": 3, "test": 2}[split])

    def run(name="tf-idf", labelled=None, **options):
        evaluation = SimpleNamespace(
            settings=DownstreamConfig(**({"name": "n"} | options)),
            shards="s",
            manifest=SimpleNamespace(hash="hash", modalities=NAMES),
            products=products,
            uncertainty="uncertainty",
            all_labels=lambda: "all labels",
            labelled_ids=labelled,
            level=SimpleNamespace(names=("a", "b")),
            classes="classes",
        )
        calls.asked.clear()
        calls.products.clear()
        return {result.task: result for result in baseline_jobs.evaluate_baseline(name, evaluation)}

    run.calls = calls
    return run


def test_a_baseline_is_judged_like_a_model(judged):
    found = judged()
    assert list(found) == ["coarse_retrieval", "clustering", "classification", "linear_probe"]
    for result in found.values():
        assert (result.stage, result.source, result.fingerprint) == ("tf-idf",) * 3
        assert (result.shards, result.manifest_hash, result.split) == ("s", "hash", "test")
        assert result.settings["name"] == "n"
    assert (found["coarse_retrieval"].tables, found["coarse_retrieval"].extras) == (["c"], {"examples": 1})
    assert (found["clustering"].tables, found["clustering"].extras) == (["k"], {"projection": 2})
    assert (found["classification"].tables, found["classification"].extras) == (["t"], {})
    probe = found["linear_probe"]
    sizes = {"train": 4, "test": 2, "validation": 3}
    assert probe.tables == [sizes, [0.05, 0.1, 0.2, 0.5, 1.0], False] and probe.extras == {"not_scored": {"u": "v"}}
    asked = dict(judged.calls.asked)
    queries, gallery, _, uncertainty, labels = asked["coarse_retrieval"]
    assert queries is gallery and (uncertainty, labels) == ("uncertainty", "all labels")
    ids, label_N, votes, classes, uncertainty = asked["classification"]
    assert (len(ids), len(label_N), votes.tolist(), classes, uncertainty) == (
        2, 2, [[[4, 2, 2]]], "classes", "uncertainty"
    )  # fmt: skip
    assert judged.calls.products == [("train", None), ("test", None), ("validation", None)]


def test_a_share_of_the_labels_votes_but_all_products_teach_the_probe(judged):
    found = judged(labelled={"train 1", "train 3"})
    assert dict(judged.calls.asked)["classification"][2][0, 0, 0] == 2
    assert found["linear_probe"].tables[0]["train"] == 4


def test_on_train_there_is_no_probe(judged):
    assert "linear_probe" not in judged(test_split="train")


def test_another_gallery_split_is_searched(judged):
    judged(coarse_retrieval=RetrievalConfig(gallery_split="validation"))
    queries, gallery, *_ = dict(judged.calls.asked)["coarse_retrieval"]
    assert (queries.info.split, gallery.info.split, len(gallery)) == ("test", "validation", 3)


def test_instances_are_found_by_file_in_pictures_and_by_group_in_all(judged):
    by_file = RetrievalConfig(instance="file", query_file=3)
    assert "instance_retrieval" not in judged(instance_retrieval=by_file)
    found = judged("color histogram", instance_retrieval=by_file)["instance_retrieval"]
    assert (found.tables, found.extras) == (["i"], {"examples": 2})
    assert judged.calls.products[-2:] == [("test", "file 3"), ("test", "file 0")]
    by_group = RetrievalConfig(instance="group")
    assert judged(instance_retrieval=by_group)["instance_retrieval"].tables == ["i"]
    queries, gallery, config, uncertainty = dict(judged.calls.asked)["instance_retrieval"]
    assert queries is gallery and (config, uncertainty) == (by_group, "uncertainty")
    assert "instance_retrieval" not in judged("color histogram")
