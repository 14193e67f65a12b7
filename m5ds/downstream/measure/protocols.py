"""Retrieval protocols: what is ranked, what counts as positive and where a list is cut.

`standard` is the textbook. `official` is the released code, bug for bug (PAPER.md section 3.1; read in
`evaluate_unit_v2.py` and `retrieval_unit_id_list_v2.py` of the SCALE repository). Each of its quirks has a name and can
be switched on alone: `ap_over_hits,k_cut_to_positives`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m5ds.downstream.measure import metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A set of quirks. All False is the textbook."""

    name: str
    ap_over_hits: bool = False
    """AP@k divides by the hits found in the first k, not by min(k, positives)."""
    k_cut_to_positives: bool = False
    """k becomes min(k, positives, length of the ranked list), query by query."""
    positives_outside_gallery: bool = False
    """Positives are counted over all labelled products: the query itself and products outside the gallery too."""
    query_dropped_after_topk: bool = False
    """The query's own row is removed after the top k are taken, so that "@10" looks at nine products."""
    only_paper_metrics: bool = False
    """Report AP and Prec only, the released code's two working metrics (its hit rate is always 0)."""


QUIRKS = ("ap_over_hits", "k_cut_to_positives", "positives_outside_gallery", "query_dropped_after_topk")
STANDARD = Protocol(name="standard")
OFFICIAL = Protocol(name="official", only_paper_metrics=True, **dict.fromkeys(QUIRKS, True))


def get_protocol(name: str) -> Protocol:
    """`standard`, `official`, or quirks joined by commas; `ValueError` names the known ones."""
    if name in ("standard", "official"):
        return STANDARD if name == "standard" else OFFICIAL
    chosen = [part.strip() for part in name.split(",")]
    unknown = [part for part in chosen if part not in QUIRKS]
    if unknown:
        raise ValueError(
            f"unknown protocol {unknown[0]!r}; use standard, official, or quirks joined by commas: {', '.join(QUIRKS)}"
        )
    return Protocol(name=",".join(chosen), **dict.fromkeys(chosen, True))


def score_rankings(
    hit_QK: NDArray[np.bool_],
    ranked_Q: NDArray[np.int64],
    num_positives_Q: NDArray[np.int64],
    ks: tuple[int, ...],
    protocol: Protocol = STANDARD,
) -> dict[str, NDArray[np.float64]]:
    """Every metric of every query: `ap@k`, `prec@k`, and in all but `official` `recall@k`, `mrr@k`, `ndcg@k`.

    hit_QK: bool, hits in rank order, the query's own row already removed; ranked_Q: how many of the K ranks are filled;
    num_positives_Q: positives as the protocol counts them. Values float64 [Q] in [0, 1].
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"k must be at least 1, got {list(ks)}")
    scores: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        cut: metrics.Cutoff = k
        if protocol.k_cut_to_positives:
            cut = np.minimum(k, np.minimum(num_positives_Q, ranked_Q))
        scores[f"ap@{k}"] = metrics.average_precision(hit_QK, num_positives_Q, cut, over_hits=protocol.ap_over_hits)
        scores[f"prec@{k}"] = metrics.precision(hit_QK, cut)
        if not protocol.only_paper_metrics:
            scores[f"recall@{k}"] = metrics.recall(hit_QK, num_positives_Q, cut)
            scores[f"mrr@{k}"] = metrics.reciprocal_rank(hit_QK, cut)
            scores[f"ndcg@{k}"] = metrics.ndcg(hit_QK, num_positives_Q, cut)
    return scores
