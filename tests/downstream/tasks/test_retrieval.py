"""Retrieval: what is ranked, what is positive, and what each protocol makes of it."""

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.measure.protocols import OFFICIAL, get_protocol
from m5ds.downstream.tasks.retrieval import category_codes, evaluate_retrieval, instance_codes


def on_a_circle(angles, labels, **options):
    angles = np.radians(angles)
    return embedding_set(np.stack([np.cos(angles), np.sin(angles)], 1), labels, **options)


def evaluate(queries, gallery, **options):
    codes = {"query_code_Q": queries.label_N, "gallery_code_G": gallery.label_N}
    return evaluate_retrieval(queries, gallery, **(codes | options))


def brute_force(queries, gallery, k):
    """Mean AP@k and Prec@k of the textbook, with loops."""
    aps, precisions = [], []
    for q, name in enumerate(queries.ids):
        others = [g for g in range(len(gallery)) if gallery.ids[g] != name]
        score = {
            g: float(np.float32(gallery.vector_ND[g].astype(float) @ queries.vector_ND[q].astype(float)))
            for g in others
        }
        ranked = sorted(others, key=lambda g: (-score[g], g))
        hits = [gallery.label_N[g] == queries.label_N[q] for g in ranked]
        if not any(hits):
            continue
        found = [sum(hits[: i + 1]) / (i + 1) for i in range(min(k, len(hits))) if hits[i]]
        aps.append(sum(found) / min(k, sum(hits)))
        precisions.append(sum(hits[:k]) / k)
    return np.mean(aps), np.mean(precisions)


@pytest.mark.parametrize("seed", range(4))
def test_standard_protocol_equals_brute_force_with_ties(seed):
    random = np.random.default_rng(seed)
    everything = embedding_set(random.integers(-1, 2, (40, 3)), random.integers(0, 12, 40))
    queries = everything.take(random.permutation(40)[:25])
    result = evaluate(queries, everything)
    for k in (1, 5, 10):
        ap, precision = brute_force(queries, everything, k)
        assert result.mean(f"ap@{k}") == pytest.approx(ap, abs=1e-9)
        assert result.mean(f"prec@{k}") == pytest.approx(precision, abs=1e-9)


def test_a_query_never_finds_itself():
    products = on_a_circle([0, 1, 50, 51], [0, 0, 1, 1])
    result = evaluate(products, products, ks=(1, 3))
    assert result.mean("prec@1") == 1.0
    assert all(name not in ranked for name, ranked in zip(result.ids, result.ranked, strict=True))
    assert [len(ranked) for ranked in result.ranked] == [3] * 4


def test_the_released_code_drops_the_query_after_the_top_k():
    products = on_a_circle(range(12), [0] * 12)
    late = evaluate(products, products, ks=(10,), protocol=get_protocol("query_dropped_after_topk"))
    early = evaluate(products, products, ks=(10,))
    assert {len(ranked) for ranked in late.ranked} == {9}
    assert {len(ranked) for ranked in early.ranked} == {10}
    assert late.mean("prec@10") < early.mean("prec@10") == 1.0


def test_positives_outside_the_gallery_count_only_with_the_quirk():
    gallery = on_a_circle([1, 90], [0, 1], ids=["a", "b"])
    queries = on_a_circle([0, 2], [0, 0], ids=["q", "r"])
    assert evaluate(queries, gallery, ks=(5,)).mean("recall@5") == 1.0
    quirk = get_protocol("positives_outside_gallery")
    # one in the gallery and the two queries themselves
    assert evaluate(queries, gallery, ks=(5,), protocol=quirk).mean("recall@5") == pytest.approx(1 / 3)
    population = np.array([0] * 10 + [1])
    whole = evaluate(queries, gallery, ks=(5,), protocol=quirk, population_code=population)
    assert whole.mean("recall@5") == pytest.approx(0.1)


def test_k_is_cut_to_the_positives_only_with_the_quirk():
    products = on_a_circle([0, 1, 2, 80, 81], [0, 0, 0, 1, 1])
    assert evaluate(products, products, ks=(4,)).scores["prec@4"].tolist() == [0.5, 0.5, 0.5, 0.25, 0.25]
    cut = evaluate(products, products, ks=(4,), protocol=get_protocol("k_cut_to_positives"))
    assert cut.scores["prec@4"].tolist() == [1.0] * 5


def test_official_protocol_scores_queries_without_a_positive_as_zero():
    products = on_a_circle([0, 1, 90], [0, 0, 1])
    assert evaluate(products, products).no_positive == 1
    official = evaluate(products, products, protocol=OFFICIAL)
    assert (official.no_positive, len(official.ids)) == (0, 3)
    assert official.scores["ap@1"][2] == 0.0


def test_unlabelled_products_are_distractors_and_not_queries():
    products = on_a_circle([0, 1, 2], [0, -1, 0])
    result = evaluate(products, products, ks=(1, 2))
    assert result.ids == ("p0", "p2")
    assert result.mean("prec@1") == 0.0 and result.mean("prec@2") == 0.5


def test_empty_products_are_neither_ranked_nor_asked_unless_they_count_as_failures():
    present_NM = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=bool)
    products = on_a_circle([0, 5, 3], [0, 0, 0], present_NM=present_NM, modalities=("image",))
    result = evaluate(products, products, ks=(1,))
    assert (result.ids, result.num_gallery, result.empty_queries) == (("p0", "p1"), 2, 1)
    assert result.mean("ap@1") == 1.0
    counted = evaluate(products, products, ks=(1,), score_empty=True)
    assert counted.scores["ap@1"].tolist() == [1.0, 1.0, 0.0]


def test_cross_modal_instance_retrieval_finds_the_same_product():
    texts = on_a_circle([0, 40, 80], None, modalities=("text",))
    images = on_a_circle([38, 1, 79], None, ids=["p1", "p0", "p2"], modalities=("image",))
    query_code_Q, gallery_code_G = instance_codes(texts, images)
    result = evaluate_retrieval(
        texts, images, query_code_Q=query_code_Q, gallery_code_G=gallery_code_G, exclude_self=False, ks=(1,)
    )
    assert result.mean("ap@1") == 1.0


def test_instances_are_groups_where_given():
    products = on_a_circle([0, 1, 2], None, group=["x", "x", ""])
    codes = instance_codes(products, products)[0]
    assert codes[0] == codes[1] != codes[2]


def test_interval_surrounds_the_mean():
    random = np.random.default_rng(0)
    products = embedding_set(random.normal(size=(60, 4)), random.integers(0, 3, 60))
    interval = evaluate(products, products).interval("ap@5", num_replicates=200)
    assert interval.low < interval.estimate < interval.high


@pytest.mark.parametrize(
    ("queries", "gallery", "message"),
    [
        (on_a_circle([0], [5], ids=["q"]), on_a_circle([1], [6]), "none of the 1 has a positive in the gallery"),
        (on_a_circle([0, 1], [-1, -1]), on_a_circle([0, 1], [0, 0]), "none has a label"),
        (on_a_circle([0], [0]), on_a_circle([0], [0], model="weights-b"), "different models"),
        (
            on_a_circle([0], [0], present_NM=[[0, 1, 1]], modalities=("image",)),
            on_a_circle([0], [0]),
            "queries: no product has any of image",
        ),
    ],
)
def test_unusable_sets_are_refused_in_one_line(queries, gallery, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluate(queries, gallery)
    assert "\n" not in str(error.value)


def test_absent_labels_name_the_remedy():
    with pytest.raises(ValueError, match="gallery: none of the 2 products has a label; .*category"):
        category_codes(on_a_circle([0, 1], [-1, -1]), "gallery")
