"""The order is a permutation in every epoch, a pure function of its arguments, and deals fairly."""

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m5ds.data.batches import order as order_module
from m5ds.data.batches.order import Order, Place, deal
from m5ds.kernels.common import philox

SIZES = (7, 0, 130, 64, 1)


def make(seed=0, chunk_size=8, window_chunks=3, sizes=SIZES, **options):
    return Order(sizes, seed, chunk_size, window_chunks, **options)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    chunk_size=st.integers(1, 50),
    window_chunks=st.integers(1, 5),
    epoch=st.integers(0, 2**32 - 2),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_epoch_is_an_exact_permutation(sizes, chunk_size, window_chunks, epoch, seed):
    order = Order(sizes, seed, chunk_size, window_chunks)
    places = order.at(epoch, range(order.num_products))
    assert sorted(places) == [(shard, index) for shard, size in enumerate(sizes) for index in range(size)]


def test_epochs_and_seeds_differ_and_repeat():
    order = make()
    everything = range(order.num_products)
    assert order.at(0, everything) == make().at(0, everything)
    assert order.at(0, everything) != order.at(1, everything)
    assert order.at(0, everything) != make(seed=1).at(0, everything)


def test_a_position_does_not_depend_on_what_was_asked_before():
    order = make()
    expected = order.at(3, range(order.num_products))
    for position in (201, 0, 57, 56, 130):
        fresh = make()
        assert fresh.at(3, [position]) == [expected[position]]
        assert order.at(3, [position]) == [expected[position]]


def test_positions_go_on_over_epochs_without_dropping_or_repeating():
    order = make()
    n = order.num_products
    places = order.places(0, 3 * n)
    assert [place.epoch for place in places] == [0] * n + [1] * n + [2] * n
    for epoch in range(3):
        assert len(set(places[epoch * n : (epoch + 1) * n])) == n
    assert order.places(n - 5, 10) == places[n - 5 : n + 5]
    assert order.places(n - 5, 2 * n) == places[n - 5 : 3 * n - 5]


def test_products_stay_inside_their_window_of_chunks():
    order = make(sizes=(96,), chunk_size=8, window_chunks=4)
    places = order.at(0, range(96))
    windows = [places[start : start + 32] for start in range(0, 96, 32)]
    chunks = [{index // 8 for _, index in window} for window in windows]
    assert [len(window) for window in chunks] == [4, 4, 4]
    assert not set.intersection(*chunks)
    assert [index for _, index in windows[0]] != sorted(index for _, index in windows[0])


def test_without_shuffling_the_order_is_that_of_the_shards():
    assert make(shuffle=False).places(5, 4) == [Place(0, 0, 5), Place(0, 0, 6), Place(0, 2, 0), Place(0, 2, 1)]


def test_first_places_are_spread_evenly_over_the_products():
    order = make(sizes=(16,), chunk_size=2, window_chunks=8)
    counts = [0] * 16
    for epoch in range(640):
        counts[order.at(epoch, [0])[0][1]] += 1
    # 40 expected each, standard deviation 6.1.
    assert min(counts) > 15 and max(counts) < 65


def test_an_order_over_a_billion_products_is_evaluated_without_listing_them():
    started = time.monotonic()
    order = Order([250_000_000] * 4, 0, 100_000, 2)
    assert len(set(order.at(7, [999_999_999, 0]))) == 2
    # Listing them would take 16 GB and minutes.
    assert time.monotonic() - started < 10


def sort_keys(seed, epoch, group, level, count):
    """62 random bits for each element, as Python integers."""
    words = [
        philox.random_words(
            seed=seed,
            draw=epoch,
            product=torch.tensor(group),
            stream=philox.Stream.ORDER,
            element=torch.tensor([element]),
            index=level,
        )
        for element in range(count)
    ]
    return [(int(word[0]) << 30) | (int(word[1]) >> 2) for word in words]


def test_the_order_is_the_one_that_checkpoints_were_written_with():
    """Chunks sorted by random bits, then the products of every window of them: a run resumes at a bare position."""
    seed, epoch, chunk_size, window_chunks = 5, 3, 4, 2
    sizes = (9, 0, 6, 4)
    runs = [range(start, min(start + chunk_size, size)) for size in sizes for start in range(0, size, chunk_size)]
    shards = [shard for shard, size in enumerate(sizes) for _ in range(0, size, chunk_size)]
    keys = sort_keys(seed, epoch, 0, 0, len(runs))
    chunks = sorted(range(len(runs)), key=keys.__getitem__)
    expected = []
    for window in range(3):
        inside = chunks[window_chunks * window : window_chunks * (window + 1)]
        products = [(shards[chunk], index) for chunk in inside for index in runs[chunk]]
        keys = sort_keys(seed, epoch, window, 1, len(products))
        expected += [products[i] for i in sorted(range(len(products)), key=keys.__getitem__)]
    assert Order(sizes, seed, chunk_size, window_chunks).at(epoch, range(19)) == expected


def test_reading_on_sorts_every_window_once_and_keeps_few(monkeypatch):
    """Two epochs are read at once where a global batch crosses from one into the next."""
    sorted_parts = []
    words = philox.random_words
    monkeypatch.setattr(
        order_module.philox,
        "random_words",
        lambda **named: sorted_parts.append((named["draw"], int(named["product"]), named["index"])) or words(**named),
    )
    order = make(sizes=(48,), chunk_size=2, window_chunks=3)
    for position in range(48):
        order.at(0, [position])
        order.at(1, [position])
    assert len(sorted_parts) == len(set(sorted_parts)) == 2 * (1 + 8)
    assert len(order._epochs) == 2 and len(order._windows) <= 4


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"window_chunks": 0}])
def test_sizes_below_one_are_refused_by_name(options):
    with pytest.raises(ValueError, match="data.chunk_size and data.window_chunks"):
        make(**options)


def test_a_shard_of_negative_size_is_refused():
    with pytest.raises(ValueError, match=r"shard sizes must not be negative, got \[3, -1\]"):
        make(sizes=(3, -1))


def test_the_smallest_chunks_and_windows_are_legal():
    assert sorted(make(sizes=(5,), chunk_size=1, window_chunks=1).at(0, range(5))) == [(0, i) for i in range(5)]


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.integers(0, 9), min_size=12, max_size=12), num_slots=st.sampled_from((1, 2, 3, 4, 6, 12)))
def test_the_longest_product_goes_to_the_cheapest_slot_that_has_room(costs, num_slots):
    slots = [[] for _ in range(num_slots)]
    for product in sorted(range(12), key=lambda i: -costs[i]):
        with_room = [slot for slot in slots if len(slot) < 12 // num_slots]
        min(with_room, key=lambda slot: sum(costs[i] for i in slot)).append(product)
    assert deal(costs, num_slots) == [sorted(slot) for slot in slots]


@settings(max_examples=60, deadline=None)
@given(
    per_slot=st.integers(1, 8),
    num_slots=st.integers(1, 6),
    data=st.data(),
)
def test_dealing_uses_every_product_once_with_equal_counts(per_slot, num_slots, data):
    costs = data.draw(st.lists(st.integers(0, 300), min_size=per_slot * num_slots, max_size=per_slot * num_slots))
    slots = deal(costs, num_slots)
    assert [len(slot) for slot in slots] == [per_slot] * num_slots
    assert sorted(itertools.chain(*slots)) == list(range(len(costs)))
    assert all(slot == sorted(slot) for slot in slots)
    assert slots == deal(list(costs), num_slots)


def test_dealt_costs_are_nearly_equal():
    order = make(sizes=(64,), chunk_size=1, window_chunks=64)
    costs = [20 + 3 * index for _, index in order.at(0, range(64))]
    loads = [sum(costs[product] for product in slot) for slot in deal(costs, 8)]
    assert max(loads) - min(loads) < 0.02 * max(loads)
    in_turn = [sum(costs[slot::8]) for slot in range(8)]
    assert max(loads) - min(loads) < max(in_turn) - min(in_turn)


def test_a_batch_that_cannot_be_dealt_equally_is_refused():
    with pytest.raises(ValueError, match=r"global_batch_size 2 must be a multiple of the 0"):
        deal([1.0, 1.0], 0)
    with pytest.raises(ValueError, match=r"global_batch_size 10 must be a multiple of the 4"):
        deal([1.0] * 10, 4)


def test_places_are_asked_of_no_more_positions_than_wanted():
    order = make(sizes=(5,), chunk_size=2, window_chunks=2)
    assert order.places(3, 0) == []
    asked = []
    at = order.at
    order.at = lambda epoch, positions: asked.append((epoch, list(positions))) or at(epoch, positions)
    assert len(order.places(3, 9)) == 9
    assert asked == [(0, [3, 4]), (1, [0, 1, 2, 3, 4]), (2, [0, 1])]


@pytest.mark.parametrize("window_chunks", [1, 2, 3, 5, 6, 7])
def test_windows_begin_where_the_chunks_before_them_end(window_chunks):
    """Chunks of 3, 3, 1, 3, 2 products: a window's first position is the sum of those before it."""
    order = make(sizes=(7, 5), chunk_size=3, window_chunks=window_chunks)
    chunk_C3, start_W = order._epoch(4)
    assert sorted(chunk_C3.tolist()) == [[0, 0, 3], [0, 3, 3], [0, 6, 1], [1, 0, 3], [1, 3, 2]]
    sizes = chunk_C3[:, 2].tolist()
    assert start_W.tolist() == [sum(sizes[:first]) for first in range(0, 5, window_chunks)] + [12]


def test_an_order_without_products_has_no_positions():
    for sizes in ((), (0, 0)):
        order = make(sizes=sizes)
        assert order.num_products == 0 and order.at(0, []) == []


def test_costs_that_are_equal_are_dealt_in_turn():
    assert deal([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]
    assert deal([5, 1, 1, 1], 2) == [[0, 3], [1, 2]]
    assert deal([], 3) == [[], [], []] and deal([7], 1) == [[0]]
    with pytest.raises(ValueError, match="3 must be a multiple of the 2"):
        deal([1, 2, 3], 2)
