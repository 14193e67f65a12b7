"""A split's batches: their cuts, what is kept, prepared ahead and changed, without a decoder."""

from types import SimpleNamespace

import pytest
import torch

from m5ds import modality
from m5ds.batch import Batch, ModalityRows
from m5ds.data.batches.prefetch import prefetch
from m5ds.data.shards.reader import Media, RawProduct
from m5ds.downstream.embed import evaluation_data
from m5ds.downstream.embed.evaluation_data import EvaluationData, damage_files, use_file
from m5ds.inputs.media import BadMedia
from m5ds.kernels.common import philox


def product(number, media=None, present=()):
    return RawProduct(
        id=f"p{number}",
        product=number,
        title="",
        description="",
        attributes=[],
        category=[],
        label=number,
        present=frozenset(present),
        media=media or {},
        group=f"g{number}",
    )


class Reader:
    shard_sizes, num_products = (3, 4), 7

    def __init__(self, shards, split):
        self.manifest = "manifest"
        self.reads = []

    def read(self, shard, index):
        self.reads.append((shard, index))
        return product(3 * shard + index)


class Maker:
    """Makes batches whose label is the product's; remembers what it was told."""

    def __init__(self, inputs, tokenizer, decoder, **options):
        self.told = inputs, tokenizer, options

    def make(self, products, draws):
        assert draws == [philox.EVALUATION_DRAW] * len(products)
        label_B = torch.tensor([one.label for one in products])
        ids = [one.id for one in products]
        rows = ModalityRows(
            length_B=torch.ones(len(ids), dtype=torch.int64),
            position_N=label_B,
            unit_N=label_B,
            part_N=label_B,
            values_NF=torch.zeros(len(ids), 3),
        )
        batch = Batch(
            ids=ids, product_B=label_B, draw_B=label_B, label_B=label_B, present_BM=label_B[:, None] >= 0,
            modalities={"image": rows},
        )  # fmt: skip
        return SimpleNamespace(batch=batch, bad_media=[BadMedia(product_id=ids[0], member="m", reason="r")])


BYTES = 8 * 4 + 3 * 4
"""Of a product's rows: four int64 and three float32."""


@pytest.fixture
def opened(monkeypatch):
    monkeypatch.setattr(evaluation_data, "ShardReader", Reader)
    monkeypatch.setattr(evaluation_data, "MicroBatchMaker", Maker)
    spec = SimpleNamespace(modality_names=("image",), modalities={"image": SimpleNamespace(input="as pictures")})
    return lambda **options: EvaluationData("shards", "test", spec, "tok", **options)


def labels(batches):
    return [item.batch.label_B.tolist() for item in batches]


def test_positions_come_in_order_in_batches_that_start_at_the_first(opened):
    data = opened(batch_size=3)
    assert labels(data.batches()) == [[0, 1, 2], [3, 4, 5], [6]]
    assert labels(data.batches(2, 7)) == [[2, 3, 4], [5, 6]]
    assert labels(data.batches(4)) == [[4, 5, 6]] and labels(data.batches(3, 3)) == []
    assert (data.num_products, data.manifest, data.split, data.batch_size) == (7, "manifest", "test", 3)
    assert opened().batch_size == 32
    (first, *_) = data.batches()
    assert first.group == ["g0", "g1", "g2"] and first.bad_media[0].product_id == "p0"
    inputs, tokenizer, options = data._maker.told
    assert (inputs, tokenizer) == ({"image": "as pictures"}, "tok")
    assert options == {"seed": 0, "training": False, "random_crop": False, "modality_dropout": 0.0}


def test_an_empty_split_is_refused(opened, monkeypatch):
    monkeypatch.setattr(Reader, "num_products", 0)
    with pytest.raises(ValueError, match="shards: split test has no product"):
        opened()


def test_products_are_changed_first_and_labelled_then(opened):
    order = []

    def change(name):
        return lambda one: order.append((name, one.id)) or one

    data = opened(batch_size=7, transform=change("transform"), relabel=change("relabel"))
    list(data.batches(0, 2))
    assert order == [("transform", "p0"), ("transform", "p1"), ("relabel", "p0"), ("relabel", "p1")]


@pytest.mark.parametrize(
    ("room", "kept"),
    [
        (0, [0, 0, 0, 0]),
        (2 * BYTES - 1, [0, 0, 0, 1]),  # the last batch has one product
        (2 * BYTES, [1, 0, 0, 0]),
        (5 * BYTES, [1, 1, 0, 1]),
        (7 * BYTES, [1, 1, 1, 1]),
    ],
)
def test_batches_are_kept_while_there_is_room(opened, monkeypatch, room, kept):
    monkeypatch.setattr(evaluation_data, "KEPT_BYTES", room)
    data = opened(batch_size=2)
    first = list(data.batches())
    again = list(data.batches())
    assert [a is b for a, b in zip(first, again, strict=True)] == kept
    assert len(data.reader.reads) == 7 + sum(len(a.group) for a, b in zip(first, again, strict=True) if a is not b)


def test_a_split_of_256_mib_is_kept():
    assert evaluation_data.KEPT_BYTES == 256 * 1024**2


def test_as_many_batches_as_threads_and_two_more_are_prepared_ahead(opened, monkeypatch):
    """One is waited for, so that the threads never run out of work while the consumer has a batch."""
    asked = []

    def recorded(groups, prepare, **options):
        asked.append(options)
        return prefetch(groups, prepare, **options)

    monkeypatch.setattr(evaluation_data, "prefetch", recorded)
    steps = opened(batch_size=1, num_threads=2).batches()
    assert [item.batch.ids for item in steps] == [[f"p{n}"] for n in range(7)]
    list(opened().batches())
    assert asked == [{"ahead": 3, "num_threads": 2}, {"ahead": 2, "num_threads": 1}]


def test_one_file_of_each_modality_is_shown():
    media = {"image": [Media("a", b"0"), Media("b", b"1")], "video": [Media("c", b"2")]}
    given = product(1, media, {"image", "video", "text"})
    second = use_file(1)(given)
    assert second.media == {"image": media["image"][1:]} and second.present == {"image", "text"}
    first = use_file(0)(given)
    assert {name: [file.name for file in files] for name, files in first.media.items()} == {
        "image": ["a"],
        "video": ["c"],
    }
    assert first.present == given.present
    assert use_file(2)(given).media == {} and use_file(2)(given).present == {"text"}


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_files_are_cut_to_a_third_by_their_own_word(share):
    for number in range(12):
        media = {name: [Media(f"{name}{n}", b"x" * 10) for n in range(2)] for name in ("image", "audio")}
        found = damage_files(share, seed=3)(product(number, media, media))
        assert found.present == {"image", "audio"} and found.id == f"p{number}"
        for name, files in found.media.items():
            for place, file in enumerate(files):
                word = philox.random_words(
                    seed=3,
                    draw=philox.EVALUATION_DRAW,
                    product=torch.tensor(number),
                    stream=philox.Stream.MEDIA_CHOICE,
                    modality=modality.get(name).number,
                    element=place,
                    index=1,
                )[0]
                assert file.name == f"{name}{place}"
                assert len(file.data) == (3 if word < round(share * 2**32) else 10)


def test_shares_outside_zero_and_one_are_refused():
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            damage_files(share, 0)
