import numpy as np
import pytest
from catalogue_cases import record, write_catalogue

from m5ds.data.describe import all_patterns, gather, gini, plots, tables
from m5ds.data.shards import BuildOptions, build_shards


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
