import numpy as np
import pytest
from catalogue_cases import record, write_catalogue

from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.describe import Statistics, all_patterns, gather, gini, plots, tables
from m5ds.data.shards.manifest import Manifest, SplitEntry


@pytest.fixture
def shards(tmp_path):
    items = [record(number, title="x" * (number % 7)) for number in range(40)]
    items.append(record(40, category=None, images=[], attributes={}, title="", i18n={}))
    build_shards(write_catalogue(tmp_path / "c", items), tmp_path / "out", BuildOptions(shard_products=10))
    return str(tmp_path / "out")


def test_the_tables_count_all_products_once(shards):
    statistics = gather(shards)
    assert len(statistics.label_N) == 41 and statistics.category_sizes.tolist() == [30, 5, 5]
    assert sum(all_patterns(statistics.manifest).values()) == 41
    assert sorted(set(statistics.title_chars_N.tolist())) == list(range(7))
    text = tables(statistics)
    assert "products without a category 1" in " ".join(text.split())
    assert "Colour" in text and "image+text+table+video" in text


def test_gini_is_zero_for_equal_and_near_one_for_one_large_category():
    assert gini(np.array([5, 5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([1, 2, 3])) == pytest.approx(2 / 9)
    assert gini(np.array([10**6] + [1] * 99)) > 0.97


def test_plots_of_a_catalogue_without_categories_and_attributes_are_drawn(tmp_path):
    items = [record(number, category=None, attributes={}) for number in range(6)]
    build_shards(write_catalogue(tmp_path / "c", items), tmp_path / "out")
    statistics = gather(str(tmp_path / "out"))
    assert "categories" in tables(statistics)
    assert len(plots(statistics, tmp_path / "report")) == 4


def test_the_tables_say_what_six_products_counted_by_hand_say():
    manifest = Manifest(
        version=1,
        modalities=("image", "text"),
        splits={
            "train": SplitEntry(num_products=4, shards=(), presence_patterns={"image+text": 2, "image": 1, "": 1}),
            "validation": SplitEntry(num_products=2, shards=(), presence_patterns={"image+text": 1, "text": 1}),
        },
        categories=("A", "B", "C", "D"),
        attributes={"Colour": 5, "Watt": 1},
        source={},
        group_key="",
        options={},
        missing_media=0,
    )
    statistics = Statistics(
        manifest=manifest,
        split_N=np.array(["train"] * 4 + ["validation"] * 2),
        label_N=np.array([0, 0, 0, 1, 2, -1]),
        title_chars_N=np.array([0, 10, 20, 30, 40, 50]),
        table_pairs_N=np.array([1, 1, 2, 2, 3, 3]),
    )
    assert statistics.category_sizes.tolist() == [3, 1, 1]
    presence, patterns, categories, pairs, keys, titles = tables(statistics).strip().split("\n\n")
    assert [line.split() for line in presence.splitlines()[2:]] == [
        ["train", "4", "3", "2", "2"],
        ["validation", "2", "1", "2", "1"],
        ["all", "6", "4", "4", "3"],
    ]
    assert [line.split() for line in patterns.splitlines()[2:]] == [
        ["image+text", "3", "50.0", "%"],
        ["(none)", "1", "16.7", "%"],
        ["image", "1", "16.7", "%"],
        ["text", "1", "16.7", "%"],
    ]
    # Gini by its definition: 8 of 9 pairs' differences of 2, over twice the mean of 5/3 and the 9 pairs.
    assert gini(np.array([3, 1, 1])) == pytest.approx(8 / (2 * 9 * 5 / 3))
    assert [" ".join(line.split()) for line in categories.splitlines()[2:]] == [
        "categories 3",
        "products without a category 1",
        "largest / median / mean 3 / 1 / 1.7",
        "categories of at most 10 products 3",
        "Gini coefficient 0.27",
        *(f"products in the top {share} % of categories 60.0 %" for share in (1, 5, 10, 20)),
        "products in the top 50 % of categories 80.0 %",
        "A 3",
        "B 1",
        "C 1",
        "D 0",
    ]
    assert [line.split() for line in pairs.splitlines()[2:]] == [
        ["train", "1.5", "1", "1", "1.5", "2", "2", "2"],
        ["validation", "3.0", "3", "3", "3", "3", "3", "3"],
        ["all", "2.0", "1", "1", "2", "3", "3", "3"],
    ]
    assert keys.splitlines()[0] == "attribute keys: 2, most common"
    assert [line.split() for line in keys.splitlines()[2:]] == [
        ["Colour", "5", "83.3", "%"],
        ["Watt", "1", "16.7", "%"],
    ]
    assert [line.split() for line in titles.splitlines()[1:]] == [
        ["split", "mean", "p0", "p10", "p50", "p90", "p99", "p100"],
        ["train", "15.0", "0", "3", "15", "27", "29.7", "30"],
        ["validation", "45.0", "40", "41", "45", "49", "49.9", "50"],
        ["all", "25.0", "0", "5", "25", "45", "49.5", "50"],
    ]
    # The first column stands left, the others right, two spaces apart.
    assert presence.splitlines()[1:3] == [
        "split       products  image  text  complete",
        "train              4      3     2         2",
    ]


def test_tables_of_no_products_have_no_shares():
    empty = Manifest(
        version=1,
        modalities=("image",),
        splits={"train": SplitEntry(num_products=0, shards=(), presence_patterns={"image": 0})},
        categories=(),
        attributes={},
        source={},
        group_key="",
        options={},
        missing_media=0,
    )
    assert all_patterns(empty) == {"image": 0}
    one = np.zeros(1, np.int64)
    text = tables(
        Statistics(manifest=empty, split_N=np.array(["train"]), label_N=one - 1, title_chars_N=one, table_pairs_N=one)
    )
    assert "image           0      -" in text


def test_the_long_tail_is_cut_at_whole_categories_and_the_twelve_largest_are_shown():
    """Twenty-five categories of 1 to 25 products: heads of 1 %, 5 %, ... are 1, 1, 2, 5 and 12 categories."""
    sizes = np.arange(1, 26)
    label_N = np.repeat(np.arange(25), sizes)
    manifest = Manifest(
        version=1,
        modalities=("text",),
        splits={"train": SplitEntry(num_products=325, shards=(), presence_patterns={"text": 325})},
        categories=tuple(f"c{number}" for number in range(25)),
        attributes={f"k{number:02d}": 20 - number for number in range(20)},
        source={},
        group_key="",
        options={},
        missing_media=0,
    )
    zeros_N = np.zeros(325, np.int64)
    statistics = Statistics(
        manifest=manifest,
        split_N=np.array(["train"] * 325),
        label_N=label_N,
        title_chars_N=zeros_N,
        table_pairs_N=zeros_N,
    )
    _, _, categories, _, keys, _ = tables(statistics).strip().split("\n\n")
    lines = [" ".join(line.split()) for line in categories.splitlines()[2:]]
    assert lines[2:4] == ["largest / median / mean 25 / 13 / 13.0", "categories of at most 10 products 10"]
    heads = [sizes[::-1][:count].sum() / 3.25 for count in (1, 1, 2, 5, 12)]
    assert lines[5:10] == [
        f"products in the top {share} % of categories {part:.1f} %"
        for share, part in zip((1, 5, 10, 20, 50), heads, strict=True)
    ]
    assert lines[10:] == [f"c{number} {number + 1}" for number in range(24, 12, -1)]
    assert [line.split()[:2] for line in keys.splitlines()[2:]] == [[f"k{n:02d}", str(20 - n)] for n in range(12)]


def test_columns_of_all_splits_come_in_the_manifests_order(shards):
    statistics = gather(shards)
    counts = {name: split.num_products for name, split in statistics.manifest.splits.items()}
    assert statistics.split_N.tolist() == [name for name, count in counts.items() for _ in range(count)]
    assert list(counts) == ["train", "validation", "test"]
    lengths = sorted([number % 7 for number in range(40)] + [0])
    assert sorted(statistics.title_chars_N.tolist()) == lengths
    assert sorted(statistics.table_pairs_N.tolist()) == [0] + [2] * 40
    assert (statistics.label_N == -1).sum() == 1
