"""k-means on product embeddings, scored by NMI, purity and ARI against the categories (paper task 4)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from m5ds.downstream.measure import bootstrap, metrics

METRICS = {
    "nmi": metrics.normalized_mutual_information,
    "purity": metrics.purity,
    "ari": metrics.adjusted_rand_index,
}


@dataclass(frozen=True, kw_only=True)
class ClusteringResult:
    """Clusters of the labelled, non-empty products."""

    ids: tuple[str, ...]
    label_N: NDArray[np.int64]
    cluster_N: NDArray[np.int64]
    num_clusters: int
    num_left_out: int
    """Products without a label or without any shown modality."""

    def scores(self) -> dict[str, float]:
        """`nmi`, `purity`, `ari`."""
        return {name: metric(self.label_N, self.cluster_N) for name, metric in METRICS.items()}

    def interval(self, metric: str, **options) -> bootstrap.Interval:
        """Bootstrap interval over products for these clusters; options as in `bootstrap.bootstrap_statistic`."""
        score = METRICS[metric]
        return bootstrap.bootstrap_statistic(
            lambda rows: score(self.label_N[rows], self.cluster_N[rows]), bootstrap.keys_of(self.ids), **options
        )


def cluster(products, *, num_clusters: int | None = None, seed: int = 0, restarts: int = 4) -> ClusteringResult:
    """k-means (k-means++, `restarts` starts, best inertia) of an EmbeddingSet's vectors.

    `num_clusters`: None takes the number of categories among the products. The result does not depend on the products'
    order: they are sorted by id first. `ValueError`: no labels, a single category, no two products of
    one category, or more clusters than products.
    """
    keep = np.flatnonzero((products.label_N >= 0) & ~products.empty_N)
    if not len(keep):
        raise ValueError(
            f"clustering: none of the {len(products)} products has a label and a shown modality; build the shards from"
            " a catalogue with `category`"
        )
    kept = products.take(keep).by_id()
    num_classes = len(np.unique(kept.label_N))
    if num_classes < 2:
        raise ValueError(
            "clustering: the products have a single category, of which NMI and purity say nothing; use shards with"
            " several"
        )
    if num_classes == len(kept):
        raise ValueError(
            f"clustering: each of the {num_classes} products has a category of its own, so any clusters would be"
            " perfect; use coarser categories"
        )
    num_clusters = num_clusters or num_classes
    if not 2 <= num_clusters <= len(kept):
        raise ValueError(f"clustering: num_clusters must be between 2 and {len(kept)} products, got {num_clusters}")
    model = KMeans(num_clusters, n_init=restarts, random_state=seed, algorithm="lloyd")
    cluster_N = model.fit_predict(kept.vector_ND.astype(np.float64)).astype(np.int64)
    return ClusteringResult(
        ids=kept.ids,
        label_N=kept.label_N,
        cluster_N=cluster_N,
        num_clusters=num_clusters,
        num_left_out=len(products) - len(kept),
    )
