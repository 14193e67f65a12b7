"""Attributes that give the category away: by value, by the nearest number, and not at all."""

import pytest

from m5ds.data.shards.leaks import find_leaks
from m5ds.data.shards.reader import RawProduct


def product(label: int, **attributes: str) -> RawProduct:
    return RawProduct(
        id="p",
        product=0,
        title="",
        description="",
        attributes=list(attributes.items()),
        category=[],
        label=label,
        present=frozenset(),
        media={},
    )


def leaks(train, held_out):
    return {leak.key: leak for leak in find_leaks(train, held_out)}


def test_a_value_that_names_the_category_is_found_and_an_unseen_one_is_wrong():
    train = [product(i % 2, kind=f"k{i % 2}", color="red") for i in range(6)]
    found = leaks(train, [product(0, kind="k0", color="red"), product(1, kind="k1"), product(1, kind="new")])
    assert found["kind"].accuracy == pytest.approx(2 / 3) and found["kind"].kind == "value"
    assert (found["color"].accuracy, found["color"].commonest) == (1.0, 1.0)
    assert found["color"].share == pytest.approx(1 / 3) and found["color"].num_products == 1


def test_numbers_are_guessed_by_the_nearest_and_ties_by_the_commonest():
    train = [product(0, order="1"), product(0, order="2.5"), product(1, order="100"), product(2, order="102")]
    train += [product(2, order="102"), product(1, order="102")]
    held_out = [product(0, order="-7"), product(1, order="99"), product(2, order="1e3"), product(1, order="many")]
    found = leaks(train, held_out)["order"]
    assert found.kind == "number"
    assert found.accuracy == pytest.approx(3 / 4)


def test_the_most_telling_attribute_comes_first_and_unlabelled_products_do_not_count():
    train = [product(i % 3, good=f"g{i % 3}", bad="same") for i in range(9)] + [product(-1, good="g0", bad="same")]
    held_out = [product(i % 3, good=f"g{i % 3}", bad="same") for i in range(6)] + [product(-1, good="g1", bad="x")]
    found = find_leaks(train, held_out)
    assert [leak.key for leak in found] == ["good", "bad"]
    assert [leak.num_products for leak in found] == [6, 6]
    assert found[1].accuracy == found[1].commonest == pytest.approx(1 / 3)


def test_an_attribute_of_one_side_is_left_out():
    assert find_leaks([product(0, a="1")], [product(0, b="1")]) == []


@pytest.mark.parametrize(("train", "held_out", "side"), [([], [0], "train"), ([0], [-1], "held-out")])
def test_labels_absent_is_said_with_the_remedy(train, held_out, side):
    sides = [[product(label, a="1") for label in labels] for labels in (train, held_out)]
    with pytest.raises(ValueError, match=f"no {side} product has a label; build the shards from a catalogue with"):
        find_leaks(*sides)
