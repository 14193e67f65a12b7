"""Which categories are learned, which labels are known, and what is said of the others."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from m5ds.data.shards.leaks import find_leaks
from m5ds.downstream.measure.categories import CategoryLevel, parse_level
from m5ds.downstream.tasks import labels
from m5ds.downstream.tasks.labels import (
    UNSEEN_NAMES,
    choose_classes,
    drawn_labels,
    read_labels,
    unseen_facts,
    unseen_line,
)
from m5ds.kernels.common import philox

NAMES = ("a", "b", "c", "d")


def chosen(counts, minimum=2, rare="keep"):
    label_N = np.repeat([*range(len(counts)), -1], [*counts, 3])
    return choose_classes(label_N, NAMES, minimum=minimum, rare=rare)


def test_categories_are_kept_dropped_or_refused_by_their_number_of_products():
    kept = chosen([3, 2, 1])
    assert kept.count_C.tolist() == [3, 2, 1, 0] and kept.kept_C.all() and kept.dropped == () and kept.names == NAMES
    dropped = chosen([3, 2, 1], rare="drop")
    assert dropped.kept_C.tolist() == [True, True, False, True]
    assert (dropped.count_C.tolist(), dropped.dropped) == ([3, 2, 0, 0], ("c",))
    assert dropped.apply(np.array([0, 2, 3, -1])).tolist() == [0, -1, 3, -1]
    assert chosen([3, 2], rare="error").dropped == ()
    with pytest.raises(ValueError, match=r"1 of 3 categories have fewer than 2 training products \(first: 'c'\)"):
        chosen([3, 2, 1], rare="error")
    assert chosen([1, 1]).kept_C.all()


def test_two_categories_must_be_left():
    for counts, rare, left in (([2, 1], "drop", 1), ([1, 1], "drop", 0), ([5], "keep", 1)):
        with pytest.raises(ValueError, match=f"at least two categories with training products, but {left} of") as error:
            chosen(counts, rare=rare)
        assert ("lower min_class_products" in str(error.value)) == (rare == "drop")
    assert chosen([2, 2, 1], rare="drop").dropped == ("c",)
    with pytest.raises(ValueError, match="labels absent: none of the 3"):
        chosen([])


class Reader:
    """Two shards of labels and product numbers."""

    shard_sizes = (3, 2)
    numbers = ([5, -7, 9], [11, 2**62])
    labels = ([0, -1, 2], [1, 1])

    def index(self, shard):
        columns = {"label": pa.array(self.labels[shard]), "product": pa.array(self.numbers[shard], pa.int64())}
        return SimpleNamespace(table=pa.table(columns))


def test_labels_are_read_in_the_shards_order():
    assert read_labels(Reader()).tolist() == [0, -1, 2, 1, 1]
    assert read_labels(SimpleNamespace(shard_sizes=())).shape == (0,)


@pytest.mark.parametrize("fraction", [0.3, 0.6, 1.0])
def test_a_label_is_known_by_the_products_word_under_the_seed(fraction):
    import torch

    for seed in (0, 1, 8):
        found = drawn_labels(Reader(), fraction, seed)
        for shard, kept_N in enumerate(found):
            word_N = philox.random_words(
                seed=seed,
                draw=philox.EVALUATION_DRAW,
                product=torch.tensor(Reader.numbers[shard]),
                stream=philox.Stream.LABEL_SHARE,
            )[0].numpy()
            known = np.array(Reader.labels[shard]) >= 0
            assert kept_N.tolist() == ((word_N < round(fraction * 2**32)) & known).tolist()


def test_unseen_categories_are_counted_and_the_first_three_named():
    label_N, seen_N = np.array([0, 1, 2, 2, 3, 9]), np.array([True, False, False, False, False, False])
    facts = unseen_facts(label_N, seen_N, NAMES)
    assert facts == {
        "tested_categories": 5,
        "unseen_categories": 4,
        "products_of_unseen_categories": 5,
        UNSEEN_NAMES: ["b", "c", "d", "9"],
    }
    assert unseen_facts(label_N, seen_N, NAMES[:2])[UNSEEN_NAMES] == ["b", "2", "3", "9"]
    line = unseen_line(facts | {"products": 6})
    assert line == (
        "4 of 5 tested categories are unseen in training, with 5 of 6 products, all counted as errors: b; c; d and 1"
        " more. A coarser category_level leaves fewer"
    )
    assert "b; c; d. A coarser" in unseen_line(facts | {"products": 6, UNSEEN_NAMES: ["b", "c", "d"]})
    assert unseen_line({}) == unseen_line({UNSEEN_NAMES: []}) == ""


def test_a_subset_reads_rows_of_the_whole(monkeypatch):
    closed = []
    whole = SimpleNamespace(
        directory="d", split="s", manifest="m", read=lambda shard, row: (shard, row), close=lambda: closed.append(1)
    )
    subset = labels.SubsetReader(whole, [np.array([False, True, True]), np.array([False])])
    assert (subset.directory, subset.split, subset.manifest) == ("d", "s", "m")
    assert subset.shard_sizes == [2, 0]
    assert [subset.read(0, 0), subset.read(0, 1)] == [(0, 1), (0, 2)]
    subset.close()
    assert closed == [1]


def test_levels_cut_paths_and_number_them_as_they_come():
    paths = ("x / p", "y", "x / q / r", "z / p")
    for level, names, numbers in (
        (1, ("x", "y", "z"), [0, 1, 0, 2]),
        (2, ("x / p", "y", "x / q", "z / p"), [0, 1, 2, 3]),
        (3, paths, [0, 1, 2, 3]),
        ("leaf", paths, [0, 1, 2, 3]),
    ):
        found = CategoryLevel.of(paths, level)
        assert (found.level, found.names, found.number_C.tolist()) == (level, names, numbers)
    top = CategoryLevel.of(paths, 1)
    assert top.apply(np.array([-1, 3, 2, 0])).tolist() == [-1, 2, 0, 0]
    assert CategoryLevel.of((), "leaf").apply(np.array([-1, -1])).tolist() == [-1, -1]
    for level in (0, 4, "root", -1):
        with pytest.raises(ValueError, match="must be leaf or between 1 and 3"):
            CategoryLevel.of(paths, level)
    with pytest.raises(ValueError, match="between 1 and 1"):
        CategoryLevel.of((), 2)
    assert (parse_level("leaf"), parse_level("1"), parse_level("12")) == ("leaf", 1, 12)
    for text in ("0", "-1", "1.5", "top", ""):
        with pytest.raises(ValueError, match="--category-level must be leaf or a number from 1 on"):
            parse_level(text)


def item(label, **attributes):
    return SimpleNamespace(label=label, attributes=list(attributes.items()))


def test_leaks_are_measured_on_held_out_products_and_sorted_by_what_they_name():
    train = [
        item(0, size="1", kind="k", mixed="1", only_train="x"),
        item(0, size="2", kind="k", mixed="a"),
        item(1, size="8", kind="m", mixed="inf"),
        item(-1, size="100"),
    ]
    held = [
        item(0, size="0", kind="k", mixed="a", only_held="x"),
        item(1, size="5", kind="k"),
        item(2, size="nine", kind="m"),
        item(1, size="9"),
        item(-1, kind="k"),
    ]
    size, kind, mixed = find_leaks(iter(train), iter(held))
    assert (size.key, size.kind, size.num_products, size.share) == ("size", "number", 4, 1.0)
    # 5 is as near to 2 as to 8, one product each: the lower label; "nine" is no number.
    assert (size.accuracy, size.num_seen, size.seen_accuracy) == (2 / 4, 3, pytest.approx(2 / 3))
    assert size.commonest == pytest.approx(1 / 4)
    assert (kind.key, kind.kind, kind.num_products, kind.share) == ("kind", "value", 3, 3 / 4)
    assert (kind.accuracy, kind.num_seen, kind.seen_accuracy) == (pytest.approx(1 / 3), 2, 0.5)
    assert kind.commonest == pytest.approx(1 / 3)
    # Infinity is no number that others are near to.
    assert (mixed.key, mixed.kind, mixed.accuracy, mixed.seen_accuracy) == ("mixed", "value", 1.0, 1.0)
    (unseen,) = find_leaks([item(0, a="1")], [item(5, a="1")])
    assert (unseen.num_seen, unseen.seen_accuracy, unseen.accuracy) == (0, None, 0.0)
    for sides, name in ((([item(-1)], held), "train"), ((train, [item(-1)]), "held-out")):
        with pytest.raises(ValueError, match=f"no {name} product has a label"):
            find_leaks(*sides)


def test_keys_that_name_equally_many_are_sorted_by_name():
    pair = [item(0, b="x", a="x")]
    assert [leak.key for leak in find_leaks(pair, pair)] == ["a", "b"]
