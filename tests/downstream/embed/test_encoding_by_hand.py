"""How the work of embedding is dealt out and put together, and what a model's vector is read from."""

import io
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from downstream_examples import NAMES, embedding_set, tiny_batch, tiny_model
from PIL import Image

from m5ds.downstream.embed import encoding
from m5ds.downstream.embed.encoding import Request
from m5ds.downstream.embed.features import FeatureOptions, check_states, encode, vector_width
from m5ds.downstream.report import pictures
from m5ds.downstream.search import query
from m5ds.downstream.search.query import Query
from m5ds.downstream.tasks import clustering
from m5ds.downstream.tasks.clustering import cluster
from m5ds.inputs.media import BadMedia
from m5ds.model.objectives.classification import ClassifierHead

TEN = embedding_set(
    np.arange(20.0).reshape(10, 2), np.arange(10), group=[f"g{i}" for i in range(10)],
    present_NM=np.arange(30).reshape(10, 3) % 2 > 0,
)  # fmt: skip
OPTIONS = FeatureOptions(modalities=NAMES)


@pytest.fixture
def dealt(monkeypatch):
    """Embeds TEN; remembers the ranges that were encoded and the files that were written."""
    calls = SimpleNamespace(ranges=[], written=[], infos=[], parts=None)

    def encode_range(pretrained, data, requests, infos, start, stop):
        calls.ranges.append((start, stop))
        return [TEN.take(np.arange(start, stop)) for _ in requests]

    def info(pretrained, data, options, shard_size=encoding.SHARD_SIZE):
        calls.infos.append(shard_size)
        return embedding_set(np.eye(10)[:, :2], shard_size=shard_size).info

    monkeypatch.setattr(encoding, "encode_range", encode_range)
    monkeypatch.setattr(encoding, "embedding_info", info)
    monkeypatch.setattr(encoding, "start_writing", lambda directory, info: [0, 2, 3])
    monkeypatch.setattr(
        encoding, "write_shard", lambda directory, number, part: calls.written.append((directory, number, part.ids))
    )
    return calls


def data(batch_size):
    return SimpleNamespace(num_products=10, batch_size=batch_size)


def test_a_split_is_embedded_in_pieces_of_four_batches(dealt):
    (one, two) = encoding.encode_split(None, data(1), [Request(options=OPTIONS)] * 2)
    assert dealt.ranges == [(0, 4), (4, 8), (8, 10)] and dealt.infos == [1024, 1024]
    for found in (one, two):
        assert (found.ids, found.group) == (TEN.ids, TEN.group) and found.info.num_products == 10
        np.testing.assert_array_equal(found.vector_ND, TEN.vector_ND)
        np.testing.assert_array_equal(found.label_N, TEN.label_N)
        np.testing.assert_array_equal(found.present_NM, TEN.present_NM)
    dealt.ranges.clear()
    encoding.encode_split(None, data(2), [Request(options=OPTIONS)])
    assert dealt.ranges == [(0, 8), (8, 10)]
    dealt.ranges.clear()
    encoding.encode_split(None, data(1000), [Request(options=OPTIONS)])
    assert dealt.ranges == [(0, 10)] and encoding.SHARD_SIZE == 1024


def test_ranks_take_turns_and_the_first_puts_their_parts_in_order(dealt, monkeypatch):
    monkeypatch.setattr(encoding.distributed, "stop_together", nullcontext)
    monkeypatch.setattr(encoding.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(encoding.distributed, "rank", lambda: 1)
    gathered = []
    monkeypatch.setattr(encoding.distributed, "gather_objects", lambda parts: gathered.append(parts))
    assert encoding.encode_split(None, data(1), [Request(options=OPTIONS)]) is None
    assert dealt.ranges == [(4, 8)]
    monkeypatch.setattr(encoding.distributed, "rank", lambda: 0)
    monkeypatch.setattr(encoding.distributed, "gather_objects", lambda parts: [parts, *gathered])
    (found,) = encoding.encode_split(None, data(1), [Request(options=OPTIONS)])
    assert dealt.ranges[1:] == [(0, 4), (8, 10)] and found.ids == TEN.ids


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bar_of_rank_zero_counts_the_ranks_own_products(dealt, monkeypatch, rank):
    bars = []

    class Bar:
        def __init__(self, **options):
            bars.append(options | {"done": 0})

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, count):
            bars[-1]["done"] += count

    monkeypatch.setattr(encoding, "tqdm", Bar)
    monkeypatch.setattr(encoding.distributed, "stop_together", nullcontext)
    monkeypatch.setattr(encoding.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(encoding.distributed, "rank", lambda: rank)
    monkeypatch.setattr(encoding.distributed, "gather_objects", lambda parts: [parts])
    monkeypatch.setattr(encoding.distributed, "broadcast_object", lambda value: [0, 2, 3])
    monkeypatch.setattr(encoding.distributed, "barrier", lambda: None)
    encoding.encode_split(None, data(1), [Request(options=OPTIONS)], progress="named")
    encoding.encode_split(None, data(1), [Request(options=OPTIONS)])
    encoding.write_embeddings(None, data(1), OPTIONS, "out", 3)
    counts = [(6, 6, 4), (4, 4, 3)][rank]
    assert [(bar["total"], bar["done"], bar["disable"]) for bar in bars] == [(n, n, rank == 1) for n in counts]
    assert [bar["desc"] for bar in bars] == ["named", "embed", "embed"]
    assert {bar["unit"] for bar in bars} == {"product"}


@pytest.mark.parametrize(("rank", "numbers"), [(0, [0, 3]), (1, [2])])
def test_the_missing_files_are_dealt_to_the_ranks(dealt, monkeypatch, rank, numbers):
    barriers = []
    monkeypatch.setattr(encoding.distributed, "stop_together", nullcontext)
    monkeypatch.setattr(encoding.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(encoding.distributed, "rank", lambda: rank)
    monkeypatch.setattr(encoding.distributed, "broadcast_object", lambda value: [0, 2, 3])
    monkeypatch.setattr(encoding.distributed, "barrier", lambda: barriers.append(1))
    assert encoding.write_embeddings(None, data(1), OPTIONS, "out", 3) == 3
    assert dealt.ranges == [(3 * n, min(3 * n + 3, 10)) for n in numbers]
    assert dealt.written == [("out", n, TEN.ids[3 * n : 3 * n + 3]) for n in numbers]
    assert barriers == [1] and dealt.infos == [3]


def test_the_info_describes_model_data_and_features(tmp_path):
    model = tiny_model(tmp_path)
    given = SimpleNamespace(fingerprint="f", model=model, head=None)
    split = SimpleNamespace(manifest=SimpleNamespace(hash="h"), split="test", num_products=5)
    options = FeatureOptions(modalities=("text",), states="contrastive", operation="concat", normalized=False)
    info = encoding.embedding_info(given, split, options)
    assert (info.model, info.data, info.split, info.num_products, info.shard_size) == ("f", "h", "test", 5, 1024)
    assert (info.model_modalities, info.modalities) == (model.names, ("text",))
    assert (info.states, info.operation, info.normalized, info.width) == ("contrastive", "concat", False, 5 * 8)
    assert encoding.embedding_info(given, split, options, 7).shard_size == 7


def test_widths_and_vectors_follow_the_states_and_the_operation(tmp_path):
    model = tiny_model(tmp_path)
    head = ClassifierHead(80, 7, 3, dropout=0.0).eval()
    batch = tiny_batch(model, 3, present_BM=torch.tensor([[1] * 5, [0] * 5, [0, 1, 0, 0, 0]]).bool())
    for states, operation, width in (
        *(("fused", "mean", 16), ("fused", "sum", 16), ("fused", "concat", 80)),
        *(("contrastive", "mean", 8), ("contrastive", "concat", 40), ("dense", "concat", 7)),
    ):
        options = FeatureOptions(modalities=model.names, states=states, operation=operation)
        assert vector_width(model, options, head) == width
        assert encode(model, batch, options, head).shape == (3, width)
    options = FeatureOptions(modalities=model.names, states="dense", operation="concat", normalized=False)
    dense_BH = encode(model, batch, options, head)
    fused_BMD = model(batch, masked=False).fused_BMD
    expected = head.dense(fused_BMD.flatten(1))
    torch.testing.assert_close(dense_BH[[0, 2]], expected[[0, 2]].detach())
    assert not dense_BH[1].any()  # empty
    check_states(model, options, head)
    for asked, available in (
        (options, model),
        (FeatureOptions(modalities=NAMES, states="contrastive"), SimpleNamespace(projections={})),
    ):
        with pytest.raises(ValueError, match=f"states {asked.states} need"):
            check_states(available, asked, None)
    official = FeatureOptions.official(NAMES)
    assert (official.states, official.operation, official.normalized) == ("fused", "sum", False)
    plain = FeatureOptions(modalities=NAMES)
    assert (plain.states, plain.operation, plain.normalized) == ("fused", "mean", True)
    for wrong in (
        {"states": "raw"},
        {"operation": "max"},
        {"states": "dense"},
        {"states": "dense", "operation": "sum"},
    ):
        with pytest.raises(ValueError, match="must be one of|knows one operation"):
            FeatureOptions(modalities=NAMES, **wrong)


def test_k_means_is_asked_as_documented(monkeypatch):
    seen = []

    class KMeans:
        def __init__(self, clusters, **options):
            seen.append((clusters, options))

        def fit_predict(self, vectors):
            seen.append(vectors)
            return np.arange(len(vectors)) % 2

    monkeypatch.setattr(clustering, "KMeans", KMeans)
    present = np.array([[1, 1, 1]] * 4 + [[0, 0, 0]], bool)
    products = embedding_set(
        np.arange(10.0).reshape(5, 2), [1, 1, 2, -1, 1], ids=["d", "b", "c", "a", "e"], present_NM=present
    )
    found = cluster(products)
    assert seen[0] == (2, {"n_init": 4, "random_state": 0, "algorithm": "lloyd"})
    assert seen[1].dtype == np.float64 and seen[1].tolist() == [[2, 3], [4, 5], [0, 1]]
    assert (found.ids, found.label_N.tolist(), found.cluster_N.tolist()) == (("b", "c", "d"), [1, 2, 1], [0, 1, 0])
    assert (found.num_clusters, found.num_left_out) == (2, 2) and found.scores()["purity"] == 1.0
    cluster(products, num_clusters=3, seed=5, restarts=1)
    assert seen[2] == (3, {"n_init": 1, "random_state": 5, "algorithm": "lloyd"})
    for count in (1, 4):
        with pytest.raises(ValueError, match=f"num_clusters must be between 2 and 3 products, got {count}"):
            cluster(products, num_clusters=count)
    for labels, message in (
        ([1] * 5, "a single category"),
        ([0, 1, 2, -1, 4], "a category of its own"),
        ([-1] * 5, "none of the 5"),
    ):
        with pytest.raises(ValueError, match=message):
            cluster(embedding_set(np.eye(5), labels, present_NM=present))
    intervals = [found.interval("ari", num_replicates=20, seed=1), found.interval("ari", num_replicates=20, seed=1)]
    assert intervals[0] == intervals[1] and intervals[0].estimate == 1.0


def test_a_query_is_a_product_of_what_was_given(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"bytes")
    asked = Query(text="lamp", attributes=(("W", "5"),), files={"image": file})
    assert asked.modalities == ("text", "table", "image") and Query().modalities == ()
    product = asked.product()
    assert (product.title, product.description, product.attributes, product.label) == ("lamp", "", [("W", "5")], -1)
    assert product.present == {"text", "table", "image"} and product.category == []
    assert [(one.name, one.data) for one in product.media["image"]] == [("a.png", b"bytes")]
    with pytest.raises(ValueError, match="--image .*: no such file"):
        Query(files={"image": tmp_path / "none"}).product()


@pytest.fixture
def searching(monkeypatch, tmp_path):
    """encode_query over recorders; `bad` is what cannot be decoded."""
    calls = SimpleNamespace(bad=[], made=[])

    class Maker:
        def __init__(self, inputs, tokenizer, decoder, **options):
            calls.made.append((sorted(inputs), tokenizer, options))

        def make(self, products, draws):
            calls.made.append((products[0].title, draws))
            return SimpleNamespace(batch="batch", bad_media=calls.bad)

    monkeypatch.setattr(query, "MicroBatchMaker", Maker)

    def encode(model, batch, options, head):
        calls.made.append((batch, options, head))
        return torch.tensor([[1.0]])

    monkeypatch.setattr(query, "encode", encode)
    info = embedding_set(np.eye(2), model="f", operation="sum", normalized=False, states="contrastive").info
    inputs = {name: SimpleNamespace(input=name) for name in NAMES}
    spec = SimpleNamespace(modality_names=NAMES, modalities=inputs)
    model = SimpleNamespace(model=SimpleNamespace(spec=spec), tokenizer="tok", fingerprint="f", source="s", head="head")
    return calls, lambda asked, **changes: query.encode_query(SimpleNamespace(**(vars(model) | changes)), asked, info)


def test_a_query_is_embedded_as_the_set_was(searching):
    calls, ask = searching
    assert ask(Query(text="lamp")).tolist() == [[1.0]]
    maker, made, (batch, options, head) = calls.made
    assert maker[:2] == (sorted(NAMES), "tok") and made == ("lamp", [0xFFFFFFFF])
    assert (batch, head, options.modalities) == ("batch", "head", NAMES)
    assert (options.states, options.operation, options.normalized) == ("contrastive", "sum", False)


def test_a_query_that_cannot_be_is_refused(searching, tmp_path):
    calls, ask = searching
    with pytest.raises(ValueError, match="made by another model"):
        ask(Query(text="lamp"), fingerprint="g")
    with pytest.raises(ValueError, match="nothing to search for"):
        ask(Query())
    with pytest.raises(ValueError, match="--video: the model has no such modality"):
        ask(Query(files={"video": tmp_path}))
    calls.bad.append(BadMedia(product_id="query", member="m", reason="torn"))
    with pytest.raises(ValueError, match="^m: cannot be decoded: torn"):
        ask(Query(text="lamp"))


def png(width, height, mode="RGBA"):
    file = io.BytesIO()
    Image.new(mode, (width, height), 200).save(file, "PNG")
    return file.getvalue()


def test_thumbnails_fit_into_their_square_and_broken_pictures_are_left_out():
    import base64

    for width, height, size in ((256, 64, (128, 32)), (10, 20, (10, 20)), (128, 256, (64, 128))):
        url = pictures.thumbnail(png(width, height, "L"))
        head, _, text = url.partition(",")
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert (head, image.size, image.mode) == ("data:image/jpeg;base64", size, "RGB")
    assert pictures.thumbnail(png(3, 3, "L")[:40]) == pictures.thumbnail(b"") == ""


def test_products_are_found_in_their_shards_with_title_and_first_picture(monkeypatch):
    closed = []

    class Reader:
        shard_sizes = (2, 2)

        def __init__(self, shards, split):
            assert (shards, split) == ("s", "test")

        def index(self, shard):
            ids = [["a", "b"], ["c", "d"]][shard]
            return SimpleNamespace(table={"id": SimpleNamespace(to_pylist=lambda: ids)})

        def read(self, shard, index):
            title = {(0, 1): "t" * 70, (1, 0): ""}[shard, index]
            files = [SimpleNamespace(data="first"), SimpleNamespace(data="second")] if shard else []
            return SimpleNamespace(title=title, media={"image": files} if files else {})

        def close(self):
            closed.append(1)

    monkeypatch.setattr(pictures, "ShardReader", Reader)
    monkeypatch.setattr(pictures, "thumbnail", lambda data: f"data:{data}")
    found = pictures.find_products("s", "test", ["b", "c", "z"])
    assert {name: (one.title, one.picture) for name, one in found.items()} == {
        "b": ("t" * 60, ""),
        "c": ("c", "data:first"),
    }
    assert closed == [1]
