"""Retrieval's bookkeeping: who asks, who is found, how positives are counted, and its defaults."""

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.measure import bootstrap
from m5ds.downstream.measure.protocols import STANDARD, get_protocol
from m5ds.downstream.tasks import retrieval
from m5ds.downstream.tasks.retrieval import category_codes, evaluate_retrieval, instance_codes


def line(places, label_N, **options):
    """Products on a circle by their angle in degrees: the nearer the angle, the higher the score."""
    angles = np.radians(places)
    return embedding_set(np.stack([np.cos(angles), np.sin(angles)], 1), label_N, **options)


def evaluate(queries, gallery, **options):
    codes = {"query_code_Q": queries.label_N, "gallery_code_G": gallery.label_N}
    return evaluate_retrieval(queries, gallery, **(codes | options))


def test_everything_about_a_search_is_recorded():
    present = np.array([[1, 0, 0]] * 5 + [[0, 1, 0]], bool)
    gallery = line([0, 10, 20, 40, 80, 5], [0, 0, 1, -1, 1, 0], present_NM=present, modalities=("image",))
    names = ["p0", "p2", "x", "p5", "y", "z"]
    asking = line([0, 20, 41, 5, 3, 2], [0, 1, 2, 0, -1, 0], ids=names, present_NM=present, modalities=("image",))
    result = evaluate(asking, gallery, ks=(1, 2))
    # x has no positive, y no label, z no picture; p5 is in the gallery, but without a picture there.
    assert result.ids == ("p0", "p2", "p5") and result.code_Q.tolist() == [0, 1, 0]
    assert (result.num_queries, result.num_gallery, result.no_positive, result.empty_queries) == (6, 5, 1, 1)
    assert result.protocol is STANDARD
    assert result.ranked == (("p1", "p2"), ("p1", "p0"), ("p0", "p1"))
    assert result.scores["prec@2"].tolist() == [0.5, 0.0, 1.0]
    assert result.scores["recall@2"].tolist() == [1.0, 0.0, 1.0]
    assert result.means()["prec@2"] == result.mean("prec@2") == 0.5
    keys = bootstrap.keys_of(result.ids)
    expected = bootstrap.bootstrap_mean(result.scores["prec@2"], keys, num_replicates=25)
    assert result.interval("prec@2", num_replicates=25) == expected
    counted = evaluate(asking, gallery, ks=(1, 2), score_empty=True)
    assert counted.ids == ("p0", "p2", "p5", "z") and counted.scores["prec@2"][3] == 0.0


def test_defaults_are_the_textbook_at_1_5_and_10_without_the_query():
    products = line(range(12), [0] * 12)
    result = evaluate(products, products)
    assert {name.partition("@")[2] for name in result.scores} == {"1", "5", "10"} and result.protocol is STANDARD
    assert all(name not in ranked for name, ranked in zip(result.ids, result.ranked, strict=True))
    assert {len(ranked) for ranked in result.ranked} == {10}
    found = evaluate(products, products, exclude_self=False, ks=(1,))
    assert [ranked[0] for ranked in found.ranked] == list(found.ids)
    with_rows = retrieval.RetrievalResult(
        ids=(), code_Q=np.zeros(0), scores={}, protocol=STANDARD, num_queries=0, num_gallery=0
    )
    assert (with_rows.no_positive, with_rows.empty_queries, with_rows.ranked) == (0, 0, ())


def test_a_query_is_no_positive_of_its_own_unless_the_quirk_counts_it():
    products = line([0, 1, 90], [0, 0, 1])
    assert evaluate(products, products, ks=(1,)).scores["recall@1"].tolist() == [1.0, 1.0]
    quirk = get_protocol("positives_outside_gallery")
    whole = evaluate(products, products, ks=(1,), protocol=quirk)
    assert whole.scores["recall@1"].tolist() == [0.5, 0.5, 0.0] and whole.no_positive == 0
    counted = evaluate(products, products, ks=(1,), protocol=quirk, population_code=np.array([0, 0, 0, 0, 2]))
    assert counted.ids == ("p0", "p1") and counted.scores["recall@1"].tolist() == [0.25, 0.25]
    assert counted.no_positive == 1


def test_queries_outside_the_gallery_are_population_too_under_the_quirk():
    gallery, queries = line([0, 90], [0, 1], ids=["a", "b"]), line([1, 0, 2], [0, 0, 0], ids=["q", "a", "r"])
    quirk = get_protocol("positives_outside_gallery")
    found = evaluate(queries, gallery, ks=(1,), protocol=quirk)
    # a once, q and r: three positives; a does not find itself.
    assert found.scores["recall@1"].tolist() == pytest.approx([1 / 3, 0.0, 1 / 3])


def test_codes_above_and_below_all_of_the_gallerys_have_no_positive():
    gallery, queries = line([0, 1], [3, 5]), line([0, 0, 0, 0], [2, 4, 6, 5], ids=list("abcd"))
    found = evaluate(queries, gallery, ks=(1,))
    assert (found.ids, found.no_positive) == (("d",), 3)


def test_the_query_that_the_quirk_drops_late_leaves_its_place_empty():
    products = line([0, 1, 2, 3], [0, 0, 0, 0])
    late = evaluate(products, products, ks=(2,), protocol=get_protocol("query_dropped_after_topk"))
    assert late.ranked == (("p1",), ("p0",), ("p1",), ("p2",))
    assert evaluate(products, products, ks=(2,)).ranked == (("p1", "p2"), ("p0", "p2"), ("p1", "p3"), ("p2", "p1"))


def test_a_side_without_anything_to_show_is_named():
    lacking = {"present_NM": [[0, 1, 0]], "modalities": ("image", "table")}
    shown = {"present_NM": [[1, 0, 0]], "modalities": ("image",)}
    for queries, gallery, message in (
        (lacking, shown, r"^queries: no product has any of image\+table;"),
        (shown, lacking, r"^gallery: no product has any of image\+table;"),
        (lacking, lacking, "^gallery:"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(line([0], [0], ids=["q"], **queries), line([0], [0], **gallery))


def test_categories_need_one_label_and_instances_are_told_by_group_then_id():
    products = line([0, 1], [-1, 4])
    assert category_codes(products, "x") is products.label_N
    assert category_codes(line([0], [0]), "x").tolist() == [0]
    queries = line([0, 1, 2], None, ids=["a", "b", "c"], group=["g", "", ""])
    gallery = line([0, 1, 2], None, ids=["c", "a", "b"], group=["", "g", "h"])
    ours, theirs = instance_codes(queries, gallery)
    assert (ours[:, None] == theirs).tolist() == [[False, True, False], [False, False, False], [True, False, False]]
