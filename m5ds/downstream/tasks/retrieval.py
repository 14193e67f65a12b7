"""Coarse retrieval (same category) and instance retrieval (same product or group), with frequency groups and intervals.

Shape letters: Q queries, G gallery products, K ranks.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m5ds.downstream.embed.embeddings import EmbeddingSet, check_comparable
from m5ds.downstream.measure import bootstrap
from m5ds.downstream.measure.protocols import STANDARD, Protocol, score_rankings
from m5ds.downstream.search.index import exact_topk

KS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Metrics of every scored query and who was left out."""

    ids: tuple[str, ...]
    """The scored queries."""
    code_Q: NDArray[np.int64]
    """What each query had to find (its category or instance number)."""
    scores: dict[str, NDArray[np.float64]]
    """Metric name -> value of each scored query."""
    protocol: Protocol
    num_queries: int
    num_gallery: int
    no_positive: int = 0
    """Queries without a positive in the gallery, not scored."""
    empty_queries: int = 0
    """Queries without any modality of the subset."""
    ranked: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    """Ids of the ranked gallery products of each scored query, best first."""

    def mean(self, metric: str) -> float:
        return float(self.scores[metric].mean())

    def means(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self.scores}

    def interval(self, metric: str, **options) -> bootstrap.Interval:
        """Bootstrap interval of the mean over queries; options as in `bootstrap.bootstrap_mean`."""
        return bootstrap.bootstrap_mean(self.scores[metric], bootstrap.keys_of(self.ids), **options)


def category_codes(products: EmbeddingSet, name: str) -> NDArray[np.int64]:
    """The products' labels; `ValueError` where none has one."""
    if not (products.label_N >= 0).any():
        raise ValueError(
            f"{name}: none of the {len(products)} products has a label; build the shards from a catalogue with"
            " `category`"
        )
    return products.label_N


def instance_codes(queries: EmbeddingSet, gallery: EmbeddingSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the products' groups; a product without a group is an instance of its own (match = same id)."""
    names_q = [group or f"id:{name}" for group, name in zip(queries.group, queries.ids, strict=True)]
    names_g = [group or f"id:{name}" for group, name in zip(gallery.group, gallery.ids, strict=True)]
    number = {name: i for i, name in enumerate(sorted({*names_q, *names_g}))}
    return np.array([number[name] for name in names_q]), np.array([number[name] for name in names_g])


def evaluate_retrieval(
    queries: EmbeddingSet,
    gallery: EmbeddingSet,
    *,
    query_code_Q: NDArray[np.int64],
    gallery_code_G: NDArray[np.int64],
    population_code: NDArray[np.int64] | None = None,
    ks: tuple[int, ...] = KS,
    protocol: Protocol = STANDARD,
    exclude_self: bool = True,
    score_empty: bool = False,
) -> RetrievalResult:
    """Rank the gallery for every query by inner product and score it.

    A gallery product is positive when its code equals the query's; codes below 0 are unknown: such queries are not
    scored and such gallery products are distractors. `population_code`: codes of all labelled products, for protocols
    that count positives outside the gallery (None: the gallery and the queries not in it). `exclude_self`: a query
    never finds its own id (off when another modality of the same product is the positive). Queries without a positive
    are left out and counted; with `score_empty` queries without any shown modality get 0 everywhere, else they are left
    out too. Empty gallery products are never ranked.

    `ValueError`: vectors of different models, no labelled query, no query with a positive.
    """
    check_comparable(queries.info, gallery.info)
    shown_Q, shown_G = ~queries.empty_N, ~gallery.empty_N
    if not shown_G.any() or not shown_Q.any():
        side = "queries" if shown_G.any() else "gallery"
        subset = "+".join((queries if shown_G.any() else gallery).info.modalities)
        raise ValueError(f"{side}: no product has any of {subset}; choose other modalities")
    rows_G = np.flatnonzero(shown_G)
    code_G = np.asarray(gallery_code_G)[rows_G]
    row_of = {gallery.ids[row]: g for g, row in enumerate(rows_G)}
    self_Q = np.array([row_of.get(name, -1) if exclude_self else -1 for name in queries.ids], dtype=np.int64)
    positives_Q = _count_positives(
        queries, query_code_Q, gallery, gallery_code_G, code_G, self_Q, population_code, protocol
    )
    candidate_Q = (query_code_Q >= 0) & (shown_Q | score_empty)
    if not candidate_Q.any():
        raise ValueError("queries: none has a label and a modality of the subset; choose another query set")
    scored_Q = candidate_Q & (positives_Q > 0)
    if not scored_Q.any():
        raise ValueError(
            f"queries: none of the {int(candidate_Q.sum())} has a positive in the gallery of {len(rows_G)}; use a"
            " gallery that shares their labels"
        )
    chosen = np.flatnonzero(scored_Q)
    ranked_QK = _rank(queries, gallery, chosen, rows_G, self_Q, max(ks), protocol)
    hit_QK = (ranked_QK >= 0) & (code_G[ranked_QK] == np.asarray(query_code_Q)[chosen, None])
    ranked_Q = (ranked_QK >= 0).sum(1)
    empty = ~shown_Q[chosen]
    hit_QK[empty] = False
    return RetrievalResult(
        ids=tuple(queries.ids[q] for q in chosen),
        code_Q=np.asarray(query_code_Q)[chosen],
        scores=score_rankings(hit_QK, ranked_Q, positives_Q[chosen], tuple(ks), protocol),
        protocol=protocol,
        num_queries=len(queries),
        num_gallery=len(rows_G),
        no_positive=int((candidate_Q & (positives_Q == 0)).sum()),
        empty_queries=int((~shown_Q).sum()),
        ranked=tuple(tuple(gallery.ids[rows_G[g]] for g in row if g >= 0) for row in ranked_QK),
    )


def _count_positives(
    queries, query_code_Q, gallery, gallery_code_G, code_G, self_Q, population_code, protocol: Protocol
) -> NDArray[np.int64]:
    """Positives of each query as the protocol counts them."""
    if protocol.positives_outside_gallery:
        if population_code is None:
            outside = [i for i, name in enumerate(queries.ids) if name not in set(gallery.ids)]
            population_code = np.concatenate([gallery_code_G, np.asarray(query_code_Q)[outside]])
        codes, counts = np.unique(population_code, return_counts=True)
        own_Q = np.zeros(len(queries), dtype=np.int64)
    else:
        codes, counts = np.unique(code_G, return_counts=True)
        own_Q = np.where(self_Q >= 0, code_G[self_Q] == query_code_Q, False).astype(np.int64)
    place_Q = np.minimum(np.searchsorted(codes, query_code_Q), len(codes) - 1)
    return np.where(codes[place_Q] == query_code_Q, counts[place_Q], 0) - own_Q


def _rank(queries, gallery, chosen, rows_G, self_Q, depth: int, protocol: Protocol) -> NDArray[np.int64]:
    """Ranked rows of the shown gallery, -1 past the end, without the query's own row."""
    dropped_after = protocol.query_dropped_after_topk
    k = depth if dropped_after or not (self_Q >= 0).any() else depth + 1
    _, ranked_QK = exact_topk(queries.vector_ND[chosen], gallery.vector_ND[rows_G], k)
    own_QK = ranked_QK == self_Q[chosen, None]
    order = np.argsort(own_QK, axis=1, kind="stable")
    ranked_QK = np.take_along_axis(np.where(own_QK, -1, ranked_QK), order, 1)
    return ranked_QK[:, :depth]
