"""Clustering of product embeddings."""

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.tasks.clustering import cluster


def blobs(spread: float, count: int = 60):
    random = np.random.default_rng(0)
    label_N = np.arange(count) % 3
    return embedding_set(np.eye(3)[label_N] * 5 + spread * random.normal(size=(count, 3)), label_N)


def test_separate_categories_are_found():
    assert cluster(blobs(0.1)).scores() == {"nmi": 1.0, "purity": 1.0, "ari": 1.0}


def test_scores_fall_with_noise_and_lie_in_their_interval():
    result = cluster(blobs(3.0))
    for name, value in result.scores().items():
        interval = result.interval(name, num_replicates=100)
        assert value < 1.0 and interval.low < value == interval.estimate < interval.high


def test_result_does_not_depend_on_the_order_of_products():
    products = blobs(2.0)
    shuffled = products.take(np.random.default_rng(1).permutation(len(products)))
    assert cluster(products).scores() == cluster(shuffled).scores()


def test_unlabelled_and_empty_products_are_left_out_and_counted():
    products = blobs(0.1)
    products.label_N[:2] = -1
    products.present_NM[2] = False
    result = cluster(products)
    assert (len(result.ids), result.num_left_out) == (57, 3)


@pytest.mark.parametrize(
    ("products", "options", "message"),
    [
        (embedding_set(np.zeros((3, 2)), [-1, -1, -1]), {}, "none of the 3 products has a label"),
        (embedding_set(np.zeros((3, 2)), [1, 1, 1]), {}, "single category"),
        (embedding_set(np.zeros((3, 2)), [0, 1, 1]), {"num_clusters": 9}, "between 2 and 3 products, got 9"),
    ],
)
def test_what_cannot_be_clustered_is_refused(products, options, message):
    with pytest.raises(ValueError, match=message):
        cluster(products, **options)
