"""The four tasks of the paper on embeddings: from vectors and labels to tables with intervals (PAPER.md section 3).

Shape letters: N products, C categories, W width, D classifiers (of several draws of the labels, say).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m5ds.downstream.embed.embeddings import EmbeddingSet, id_order
from m5ds.downstream.measure import metrics
from m5ds.downstream.measure.bootstrap import bootstrap_mean, bootstrap_means, bootstrap_statistic, keys_of
from m5ds.downstream.measure.frequency import COUNTS, SHARES, FrequencyRule, split_by_frequency
from m5ds.downstream.measure.protocols import get_protocol
from m5ds.downstream.measure.results import Table
from m5ds.downstream.settings import ClusteringConfig, RetrievalConfig
from m5ds.downstream.tasks.clustering import METRICS, cluster
from m5ds.downstream.tasks.labels import ClassChoice, unseen_facts
from m5ds.downstream.tasks.retrieval import RetrievalResult, category_codes, evaluate_retrieval, instance_codes

NUM_EXAMPLES, EXAMPLE_DEPTH = 8, 6
RULES = {"counts": COUNTS, "shares": SHARES}


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """How intervals are made and classes are grouped."""

    num_replicates: int = 1000
    seed: int = 0
    train_label_N: NDArray[np.int64] | None = None
    """Labels of the training split, for head, medium and tail; None: no breakdown."""
    rule: FrequencyRule = COUNTS

    def groups(
        self, values_N: NDArray[np.float64], label_N: NDArray[np.int64], ids: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Interval and size of each frequency group."""
        if self.train_label_N is None or (self.train_label_N < 0).all():
            return {}
        rows = split_by_frequency(np.arange(len(values_N)), label_N, self.train_label_N, self.rule)
        found = {}
        for name, row in rows.items():
            entry: dict[str, Any] = {"estimate": float(values_N[row].mean()), "num_products": len(row)}
            if len(row) > 1:
                interval = self.mean(values_N[row], [ids[i] for i in row])
                entry |= {"low": interval.low, "high": interval.high}
            found[name] = entry
        return found

    def mean(self, values_N: NDArray[np.float64], ids: Sequence[str]):
        return bootstrap_mean(values_N, keys_of(ids), num_replicates=self.num_replicates, seed=self.seed)

    def statistic(self, statistic, ids: Sequence[str]):
        replicates = min(self.num_replicates, 300)
        return bootstrap_statistic(statistic, keys_of(ids), num_replicates=replicates, seed=self.seed)


def retrieval_table(name: str, result: RetrievalResult, uncertainty: Uncertainty, *, labelled: bool) -> Table:
    """Intervals of every metric; head, medium and tail of the AP at the largest k where codes are categories."""
    main = [metric for metric in result.scores if metric.startswith("ap@")][-1]
    if len(result.ids) < 2:
        raise ValueError(f"{name}: only {len(result.ids)} query could be scored; use a larger query set")
    return Table(
        name=name,
        metrics=bootstrap_means(
            result.scores,
            keys_of(result.ids),
            num_replicates=uncertainty.num_replicates,
            seed=uncertainty.seed,
        ),
        facts={
            "protocol": result.protocol.name,
            "scored_queries": len(result.ids),
            "queries": result.num_queries,
            "gallery": result.num_gallery,
            "queries_without_positive": result.no_positive,
            "empty_queries": result.empty_queries,
        },
        groups=uncertainty.groups(result.scores[main], result.code_Q, result.ids) if labelled else {},
        ids=result.ids,
        values=dict(result.scores),
    )


def coarse_retrieval(
    queries: EmbeddingSet,
    gallery: EmbeddingSet,
    config: RetrievalConfig,
    uncertainty: Uncertainty,
    population_label: NDArray[np.int64] | None = None,
) -> tuple[list[Table], dict[str, Any]]:
    """Match = same category. One table a protocol, and retrieval examples. `ValueError` as evaluate_retrieval."""
    queries, gallery = queries.by_id(), gallery.by_id()
    codes = category_codes(queries, "queries"), category_codes(gallery, "gallery")
    return _retrieve(queries, gallery, codes, config, uncertainty, population_label, exclude_self=True, labelled=True)


def instance_retrieval(
    queries: EmbeddingSet, gallery: EmbeddingSet, config: RetrievalConfig, uncertainty: Uncertainty
) -> tuple[list[Table], dict[str, Any]]:
    """Match = same product (seen through other modalities or another file) or same group."""
    queries, gallery = queries.by_id(), gallery.by_id()
    by_group = config.instance == "group"
    if by_group:
        codes = instance_codes(queries, gallery)
    else:
        number = {name: i for i, name in enumerate(sorted({*queries.ids, *gallery.ids}))}
        codes = np.array([number[name] for name in queries.ids]), np.array([number[name] for name in gallery.ids])
        if config.instance == "product" and queries.info.modalities == gallery.info.modalities:
            raise ValueError(
                f"instance_retrieval: queries and gallery both show {'+'.join(queries.info.modalities)}, so every"
                " product finds itself; set query_modalities and gallery_modalities to different subsets"
            )
    return _retrieve(queries, gallery, codes, config, uncertainty, None, exclude_self=by_group, labelled=False)


def _retrieve(
    queries: EmbeddingSet,
    gallery: EmbeddingSet,
    codes: tuple[NDArray[np.int64], NDArray[np.int64]],
    config: RetrievalConfig,
    uncertainty: Uncertainty,
    population: NDArray[np.int64] | None,
    *,
    exclude_self: bool,
    labelled: bool,
) -> tuple[list[Table], dict[str, Any]]:
    tables: list[Table] = []
    examples: list[Any] = []
    for name in config.protocols:
        result = evaluate_retrieval(
            queries,
            gallery,
            query_code_Q=codes[0],
            gallery_code_G=codes[1],
            population_code=population,
            ks=tuple(config.ks),
            protocol=get_protocol(name),
            exclude_self=exclude_self,
        )
        tables.append(retrieval_table(name, result, uncertainty, labelled=labelled))
        examples = examples or _examples(result, dict(zip(gallery.ids, codes[1].tolist(), strict=True)))
    shown = ["+".join(side.info.modalities) for side in (queries, gallery)]
    for table in tables:
        table.facts |= {"query_modalities": shown[0], "gallery_modalities": shown[1]}
    return tables, {"examples": examples}


def _examples(result: RetrievalResult, code_of: dict[str, int]) -> list[dict[str, Any]]:
    """Evenly spaced queries with what they found."""
    rows = np.unique(np.linspace(0, len(result.ids) - 1, min(NUM_EXAMPLES, len(result.ids))).astype(int))
    return [
        {
            "query": result.ids[q],
            "found": [
                {"id": name, "relevant": code_of[name] == int(result.code_Q[q])}
                for name in result.ranked[q][:EXAMPLE_DEPTH]
            ],
        }
        for q in rows
    ]


def clustering(products: EmbeddingSet, config: ClusteringConfig, uncertainty: Uncertainty) -> list[Table]:
    """NMI, purity and ARI of k-means, averaged over its seeds; the interval is over products. Raises as `cluster`."""
    results = [cluster(products, num_clusters=config.num_clusters, seed=seed) for seed in config.seeds]
    first = results[0]

    def averaged(metric):
        return lambda rows: float(np.mean([metric(r.label_N[rows], r.cluster_N[rows]) for r in results]))

    return [
        Table(
            name="k-means",
            metrics={name: uncertainty.statistic(averaged(metric), first.ids) for name, metric in METRICS.items()},
            facts={
                "clusters": first.num_clusters,
                "seeds": list(config.seeds),
                "products": len(first.ids),
                "left_out": first.num_left_out,
                "modalities": "+".join(products.info.modalities),
            },
            ids=first.ids,
            values={
                "label": first.label_N.astype(np.float64),
                **{f"cluster/{s}": r.cluster_N.astype(np.float64) for s, r in zip(config.seeds, results, strict=True)},
            },
        )
    ]


def classification(
    ids: Sequence[str],
    label_N: NDArray[np.int64],
    logits_DNC: NDArray[np.float32],
    classes: ClassChoice,
    uncertainty: Uncertainty,
    name: str = "test",
) -> Table:
    """Accuracy, macro accuracy and top-5 of the labelled products; only categories with training products are guessed.
    Of several classifiers the means. Products of a category that no classifier was taught are errors of all three;
    where there are any, `seen_accuracy` leaves them out (of several classifiers: of those that were taught it).

    `ValueError` where no product has a label of a kept category.
    """
    order = id_order(ids)
    ids, label_N, logits_DNC = [ids[i] for i in order], classes.apply(label_N)[order], logits_DNC[:, order]
    rows = np.flatnonzero(label_N >= 0)
    if len(rows) < 2:
        raise ValueError(f"classification: {len(rows)} of {len(ids)} products have a label of a kept category")
    kept_ids = tuple(ids[i] for i in rows.tolist())
    label_N = label_N[rows]
    logits_DNC = np.where(classes.count_C > 0, logits_DNC[:, rows], -np.inf)
    predicted_DN = logits_DNC.argmax(2)
    correct_N = (predicted_DN == label_N).mean(0)
    guessed_DN = np.isfinite(np.take_along_axis(logits_DNC, label_N[None, :, None], axis=2)[..., 0])
    top5_DN = np.stack([metrics.top_k_correct(label_N, logits_NC, 5) for logits_NC in logits_DNC])
    top5_N = np.where(guessed_DN, top5_DN, 0.0).mean(0)

    seen_N: NDArray[np.bool_] = np.any(guessed_DN, axis=0)
    metrics_found = {"accuracy": uncertainty.mean(correct_N, kept_ids)}
    if not seen_N.all() and seen_N.sum() > 1:
        right_N = ((predicted_DN == label_N) & guessed_DN).sum(0)[seen_N] / guessed_DN.sum(0)[seen_N]
        metrics_found["seen_accuracy"] = uncertainty.mean(right_N, [kept_ids[i] for i in np.flatnonzero(seen_N)])

    def macro_accuracy(chosen: NDArray[np.int64]) -> float:
        return float(np.mean([metrics.macro_accuracy(label_N[chosen], one_N[chosen]) for one_N in predicted_DN]))

    return Table(
        name=name,
        metrics={
            **metrics_found,
            "macro_accuracy": uncertainty.statistic(macro_accuracy, kept_ids),
            "top5_accuracy": uncertainty.mean(top5_N, kept_ids),
        },
        facts={
            "products": len(rows),
            "left_out": len(ids) - len(rows),
            "categories": int((classes.count_C > 0).sum()),
            "rare_categories_left_out": len(classes.dropped),
            **unseen_facts(label_N, seen_N, classes.names),
        },
        groups=uncertainty.groups(correct_N, label_N, kept_ids),
        ids=kept_ids,
        values={
            "accuracy": correct_N,
            "top5_accuracy": top5_N,
            "label": label_N.astype(np.float64),
            **{f"predicted/{number}": one_N.astype(np.float64) for number, one_N in enumerate(predicted_DN)},
        },
    )
