"""Metrics of one query, of a classification and of a clustering, by their textbook definitions.

Ranking metrics take `hit_QK`: bool, True where the k-th ranked gallery item of query q is relevant, best first; a list
shorter than k is padded with False, or K is smaller than k. Which items are ranked, what counts as positive and where
the list is cut are the protocol's business (protocols.py). All return float64 [Q]; a query without a positive gets
0.0, as in scikit-learn and ranx, and the protocol decides whether it counts.

Shape letters: Q queries, K ranks, N products.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics
from sklearn.metrics.cluster import contingency_matrix

Cutoff = int | NDArray[np.int64]
"""Ranks that count: one number, or one for each query."""


def _inside(hit_QK: NDArray[np.bool_], k: Cutoff) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The hits above the cutoff as float64 [Q, K], and the cutoff of each query."""
    if hit_QK.ndim != 2:
        raise ValueError(f"hits must be [queries, ranks], got shape {hit_QK.shape}")
    if isinstance(k, int) and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k_Q = np.broadcast_to(np.asarray(k, dtype=np.int64), hit_QK.shape[:1])
    return np.where(np.arange(hit_QK.shape[1]) < k_Q[:, None], hit_QK, False).astype(np.float64), k_Q


def _divide(a_Q: NDArray[np.float64], b_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(a_Q, b_Q, out=np.zeros(len(a_Q)), where=b_Q > 0)


def precision(hit_QK: NDArray[np.bool_], k: Cutoff) -> NDArray[np.float64]:
    """Hits among the first k, divided by k (also where fewer than k items are ranked)."""
    inside_QK, k_Q = _inside(hit_QK, k)
    return _divide(inside_QK.sum(1), k_Q)


def recall(hit_QK: NDArray[np.bool_], num_positives_Q: NDArray[np.int64], k: Cutoff) -> NDArray[np.float64]:
    """Hits among the first k, divided by the query's positives."""
    return _divide(_inside(hit_QK, k)[0].sum(1), num_positives_Q)


def average_precision(
    hit_QK: NDArray[np.bool_], num_positives_Q: NDArray[np.int64], k: Cutoff, *, over_hits: bool = False
) -> NDArray[np.float64]:
    """Sum of the precision at each hit among the first k, divided by min(k, positives).

    `over_hits` divides by the hits found instead, as the released code does: one hit at rank 1 of 10 gives 1.0
    whatever the number of positives (PAPER.md section 3.1).
    """
    inside_QK, k_Q = _inside(hit_QK, k)
    precision_QK = inside_QK.cumsum(1) / np.arange(1, hit_QK.shape[1] + 1)
    hits_Q = inside_QK.sum(1).astype(np.int64)
    return _divide((precision_QK * inside_QK).sum(1), hits_Q if over_hits else np.minimum(k_Q, num_positives_Q))


def reciprocal_rank(hit_QK: NDArray[np.bool_], k: Cutoff) -> NDArray[np.float64]:
    """One over the rank of the first hit among the first k; 0.0 without one. Its mean is MRR@k."""
    inside_QK, _ = _inside(hit_QK, k)
    if hit_QK.shape[1] == 0:
        return np.zeros(len(hit_QK))
    return np.where(inside_QK.any(1), 1.0 / (inside_QK.argmax(1) + 1.0), 0.0)


def ndcg(hit_QK: NDArray[np.bool_], num_positives_Q: NDArray[np.int64], k: Cutoff) -> NDArray[np.float64]:
    """Discounted cumulative gain (binary gain, log2 discount) over that of the best list of min(k, positives) hits."""
    inside_QK, k_Q = _inside(hit_QK, k)
    ideal_Q = np.minimum(k_Q, num_positives_Q)
    depth = max(hit_QK.shape[1], int(ideal_Q.max(initial=0)))
    discount_K = 1.0 / np.log2(np.arange(2, depth + 2))
    best_Q = np.concatenate([[0.0], discount_K.cumsum()])[ideal_Q]
    gain_Q = inside_QK @ discount_K[: hit_QK.shape[1]]
    return np.divide(gain_Q, best_Q, out=np.zeros(len(gain_Q)), where=best_Q > 0)


def accuracy(label_N: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> float:
    """Share of products whose predicted class is their label."""
    return float(sklearn_metrics.accuracy_score(label_N, predicted_N))


def macro_accuracy(label_N: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> float:
    """Mean over the classes that occur in `label_N` of the share of their products predicted right."""
    label_N, predicted_N = np.asarray(label_N), np.asarray(predicted_N)
    if not len(label_N):
        raise ValueError("macro accuracy of no products is undefined")
    _, class_N = np.unique(label_N, return_inverse=True)
    return float((np.bincount(class_N, weights=label_N == predicted_N) / np.bincount(class_N)).mean())


def top_k_correct(label_N: NDArray[np.int64], score_NC: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    """1.0 where the label is among the k classes of highest score; of equal scores the lower class number wins."""
    order_NC = np.argsort(-score_NC, axis=1, kind="stable")
    return (order_NC[:, :k] == np.asarray(label_N)[:, None]).any(1).astype(np.float64)


def normalized_mutual_information(label_N: NDArray[np.int64], cluster_N: NDArray[np.int64]) -> float:
    """Mutual information over the arithmetic mean of both entropies.

    The products' order changes no bit: scikit-learn sums over cells in the order in which their first products come.
    """
    order = np.lexsort((cluster_N, label_N))
    score = sklearn_metrics.normalized_mutual_info_score(np.asarray(label_N)[order], np.asarray(cluster_N)[order])
    return float(score)


def adjusted_rand_index(label_N: NDArray[np.int64], cluster_N: NDArray[np.int64]) -> float:
    """Rand index corrected for chance."""
    return float(sklearn_metrics.adjusted_rand_score(label_N, cluster_N))


def purity(label_N: NDArray[np.int64], cluster_N: NDArray[np.int64]) -> float:
    """Share of products whose label is the most frequent one of their cluster."""
    return float(contingency_matrix(label_N, cluster_N).max(0).sum() / len(label_N))
