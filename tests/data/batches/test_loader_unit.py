"""The loader's own arithmetic, with stand-ins for shards, threads and the maker of micro-batches."""

from concurrent.futures import Future
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from m5ds.config import DataConfig, ModalityConfig
from m5ds.data.batches import loader as loader_module
from m5ds.data.batches import prefetch as prefetch_module
from m5ds.data.batches.loader import Loader
from m5ds.data.batches.micro_batch import Prepared
from m5ds.data.batches.order import Order, Place, deal
from m5ds.inputs import FeatureRows, TablePairs, TextTokens
from m5ds.kernels.common.philox import EVALUATION_DRAW

SIZES = [5, 9, 6]
SPECS = {"audio": FeatureRows(rows=3, dim=2), "table": TablePairs(max_tokens=9), "text": TextTokens(max_tokens=6)}
DATA = DataConfig(chunk_size=3, window_chunks=2, prefetch_steps=2, num_threads=7, modality_dropout=0.25)


def reader(sizes=SIZES):
    """Shards whose product (shard, index) has as many characters as its number in the shard, times ten."""

    def index(shard):
        count = sizes[shard]
        return SimpleNamespace(
            present=[frozenset(["text", "table", "audio"][: 1 + number % 3]) for number in range(count)],
            text_chars=np.arange(count) * 10,
            table_chars=np.arange(count)[::-1] * 5,
        )

    return SimpleNamespace(
        directory="SHARDS",
        split="train",
        shard_sizes=list(sizes),
        num_products=sum(sizes),
        index=index,
        read=lambda shard, number: (shard, number),
    )


class Maker:
    """Keeps what it was built with, and what it was asked to make."""

    def __init__(self, *given, **named):
        self.given, self.named = given, named

    def make(self, products, draws):
        return Prepared(batch=(products, draws), bad_media=[products[0]], num_decoded=len(products))


class Executor:
    """Does its work at once, and keeps what it was given."""

    def __init__(self, num_threads, **_):
        self.num_threads, self.submitted = num_threads, []
        self.ended = None
        Executor.last = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, work, *given):
        self.submitted.append(given)
        future = Future()
        future.set_result(work(*given))
        return future

    def shutdown(self, **named):
        self.ended = named


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setattr(loader_module, "MicroBatchMaker", Maker)
    monkeypatch.setattr(prefetch_module, "ThreadPoolExecutor", Executor)

    def build(data=DATA, sizes=SIZES, specs=SPECS, **options):
        modalities = {name: ModalityConfig(input=spec, embedder="any", head="any") for name, spec in specs.items()}
        options = {"seed": 5, "global_batch_size": 6} | options
        return Loader(data, modalities, reader(sizes), "TOKENIZER", "DECODER", **options)

    return build


def test_settings_reach_the_maker_of_micro_batches(build):
    maker = build()._maker
    assert maker.given == ({name: SPECS[name] for name in ("text", "table", "audio")}, "TOKENIZER", "DECODER")
    assert list(maker.given[0]) == ["text", "table", "audio"]
    assert maker.named == {"seed": 5, "training": True, "random_crop": True, "modality_dropout": 0.25}
    other = build(DataConfig(random_crop=False), seed=8, training=False)._maker
    assert other.named == {"seed": 8, "training": False, "random_crop": False, "modality_dropout": 0.0}


def cost(place):
    """Rows at most: two characters make a token, one more for what is added, one for each summary."""
    rows = 1 + min(6, 1 + 10 * place.index // 2)
    if place.index % 3 > 0:
        rows += 1 + min(9, 1 + 5 * (SIZES[place.shard] - 1 - place.index) // 2)
    if place.index % 3 == 2:
        rows += 1 + 3
    return rows


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (3, 1), (1, 2), (3, 2), (2, 3)])
def test_every_rank_makes_its_own_slots_of_the_dealt_batch(build, world_size, accumulation):
    order = Order(SIZES, 5, 3, 2)
    for rank in range(world_size):
        loader = build(rank=rank, world_size=world_size, accumulation=accumulation)
        for number, step in enumerate(loader.steps(num_steps=4)):
            places = order.places(6 * number, 6)
            slots = deal([cost(place) for place in places], world_size * accumulation)
            own = slots[rank * accumulation : (rank + 1) * accumulation]
            assert step.micro_batches == [
                ([(places[i].shard, places[i].index) for i in slot], [places[i].epoch for i in slot]) for slot in own
            ]
            assert (step.position, step.epoch) == (6 * number, 6 * number // 20)
            assert step.num_decoded == 6 // world_size
            assert step.bad_media == [products[0] for products, _ in step.micro_batches]
            assert 0 <= step.wait_seconds < 5


def test_by_default_one_rank_trains_on_whole_batches(build):
    (step,) = build().steps(num_steps=1)
    ((products, draws),) = step.micro_batches
    assert len(products) == 6 and draws == [0] * 6


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_as_many_steps_are_prepared_ahead_as_asked_for(build, ahead):
    loader = build(DataConfig(prefetch_steps=ahead, num_threads=7), accumulation=2)
    steps = loader.steps(position=12)
    for number in range(3):
        assert next(steps).position == 12 + 6 * number
        pool = Executor.last
        assert pool.submitted == [((12 + 6 * k, slot),) for k in range(number + 1 + ahead) for slot in (0, 1)]
    assert pool.num_threads == 7 and pool.ended is None
    loader.close()
    assert pool.ended == {"wait": False, "cancel_futures": True}
    assert loader._plans._capacity == ahead + 2


def test_no_more_steps_are_prepared_than_asked_for(build):
    loader = build(DataConfig(prefetch_steps=9))
    assert [step.position for step in loader.steps(6, 3)] == [6, 12, 18]
    assert [position for ((position, _),) in Executor.last.submitted] == [6, 12, 18]
    assert list(loader.steps(6, 0)) == []
    assert [step.position for step in islice(loader.steps(), 30)] == list(range(0, 180, 6))


@pytest.mark.parametrize(("size", "num_steps", "padding"), [(6, 4, 4), (20, 1, 0), (10, 2, 0), (24, 1, 4), (1, 20, 0)])
def test_evaluation_holds_the_split_once_in_order_and_pads_the_end(build, size, num_steps, padding):
    loader = build(training=False, global_batch_size=size)
    assert (loader.num_evaluation_steps, loader.num_products) == (num_steps, 20)
    steps = list(loader.evaluation_steps())
    assert [(step.position, step.epoch) for step in steps] == [(size * number, 0) for number in range(num_steps)]
    seen = [product for step in steps for products, _ in step.micro_batches for product in products]
    assert seen[:20] == [(shard, number) for shard, count in enumerate(SIZES) for number in range(count)]
    assert seen[20:] == [None] * padding
    draws = {draw for step in steps for _, draws in step.micro_batches for draw in draws}
    assert draws == {EVALUATION_DRAW}


def test_padding_costs_nothing(build):
    loader = build(training=False)
    assert loader._cost(None) == 0
    for place in (Place(0, shard, index) for shard, count in enumerate(SIZES) for index in range(count)):
        assert loader._cost(place) == cost(place)


def test_a_batch_must_deal_equally_and_training_needs_a_whole_one(build):
    assert build(sizes=[6]).num_products == 6
    with pytest.raises(
        ValueError, match="SHARDS: split train has 5 products, fewer than one train.global_batch_size of 6"
    ):
        build(sizes=[5])
    assert build(sizes=[5], training=False).num_evaluation_steps == 1
    with pytest.raises(ValueError, match="6 must be a multiple of world size 2 x train.accumulation 2; change one"):
        build(world_size=2, accumulation=2)
