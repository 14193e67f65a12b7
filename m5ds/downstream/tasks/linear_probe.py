"""Classification on frozen features: a logistic regression over product embeddings, with all labels and with few.

After CLIP's linear probe (Radford et al. 2021, section 3.2): L-BFGS, the strength of regularisation chosen on the
validation split; ours standardises the features and does not fit again with the validation products. Nothing of the
encoder moves, so the score says what its features hold.

Shape letters: N products, W width, C categories, D draws of the labels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from m5ds.downstream.embed.embeddings import EmbeddingSet
from m5ds.downstream.measure.results import Table
from m5ds.downstream.settings import LinearProbeConfig
from m5ds.downstream.tasks import tasks
from m5ds.downstream.tasks.labels import ClassChoice

ALONE = " only"
"""What the names of tables of one modality end with."""


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """What a probe reads: features and labels, those of left-out categories as -1."""

    train_NW: NDArray[np.float32] | sparse.csr_matrix
    train_label_N: NDArray[np.int64]
    validation_NW: NDArray[np.float32] | sparse.csr_matrix | None
    """None: nothing to choose on, the grid has one value."""
    validation_label_N: NDArray[np.int64] | None
    test_NW: NDArray[np.float32] | sparse.csr_matrix
    num_categories: int

    @classmethod
    def of(
        cls,
        train: EmbeddingSet,
        validation: EmbeddingSet | None,
        test: EmbeddingSet,
        classes: ClassChoice,
        *,
        standardized: bool = True,
    ) -> "ProbeData":
        """Features of three splits, by the training split's means and deviations.

        `standardized=False` keeps sparse vectors sparse: one factor makes their mean square 1, as standardised ones
        have it, so that a strength means the same for both.
        """
        given = [None if one is None else one.vector_ND for one in (train, validation, test)]
        if standardized:
            scaler = StandardScaler().fit(train.vector_ND)
            vectors = [None if one is None else scaler.transform(one) for one in given]
        else:
            factor = np.float32(1 / np.sqrt(np.square(train.vector_ND, dtype=np.float64).mean()))
            vectors = [None if one is None else sparse.csr_matrix(one * factor) for one in given]
        return cls(
            train_NW=vectors[0],
            train_label_N=classes.apply(train.label_N),
            validation_NW=vectors[1],
            validation_label_N=None if validation is None else classes.apply(validation.label_N),
            test_NW=vectors[2],
            num_categories=len(classes.kept_C),
        )


def probe(
    data: ProbeData, draws: Sequence[NDArray[np.bool_]], config: LinearProbeConfig
) -> tuple[NDArray[np.float32], float]:
    """(scores [D, N, C] of the test products, inverse regularisation) learned from each draw's labels.

    The strength is the one whose validation accuracy, averaged over the draws, is best (the stronger of equals).
    A category that a draw does not hold has -inf. `ValueError`: a draw holds fewer than two categories, or no
    validation label is there to choose several strengths by.
    """
    rows = [np.flatnonzero(drawn_N & (data.train_label_N >= 0)) for drawn_N in draws]
    held = min(len(np.unique(data.train_label_N[row])) for row in rows)
    if held < 2:
        raise ValueError(
            f"linear_probe.label_fractions: a draw of {min(map(len, rows))} labels holds {held} categories, a probe"
            " needs two; ask for a larger fraction"
        )
    chooses = len(config.inverse_regularization) > 1
    if chooses and (data.validation_label_N is None or (data.validation_label_N < 0).all()):
        raise ValueError(
            "no validation product has a label of a kept category to choose the strength by; give"
            " linear_probe.inverse_regularization one value"
        )
    best: tuple[float, float, NDArray[np.float32]] | None = None
    for strength in sorted(config.inverse_regularization):
        models = [_fit(data, row, strength, config.max_iterations) for row in rows]
        score = float(np.mean([_validation_accuracy(data, model) for model in models])) if chooses else 0.0
        if best is None or score > best[0]:
            best = score, strength, np.stack([_scores(data, model) for model in models])
    assert best is not None
    return best[2], best[1]


def _fit(data: ProbeData, row: NDArray[np.int64], strength: float, max_iterations: int) -> LogisticRegression:
    with warnings.catch_warnings():
        # Weakly regularised fits of separable labels go on for ever; the validation split judges them where they stop.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        return LogisticRegression(C=strength, max_iter=max_iterations).fit(data.train_NW[row], data.train_label_N[row])


def _validation_accuracy(data: ProbeData, model: LogisticRegression) -> float:
    assert data.validation_label_N is not None
    known_N = data.validation_label_N >= 0
    return float((model.predict(data.validation_NW) == data.validation_label_N)[known_N].mean())


def _scores(data: ProbeData, model: LogisticRegression) -> NDArray[np.float32]:
    full_NC = np.full((data.test_NW.shape[0], data.num_categories), -np.inf, dtype=np.float32)
    decision = model.decision_function(data.test_NW)
    # Of two categories scikit-learn gives the second one's score alone.
    full_NC[:, model.classes_] = np.stack([-decision, decision], 1) if decision.ndim == 1 else decision
    return full_NC


def label_name(fraction: float) -> str:
    """How a table of this share of the labels is called."""
    return "all labels" if fraction == 1.0 else f"{100 * fraction:g} % of the labels"


def probe_table(
    name: str,
    data: ProbeData,
    draws: Sequence[NDArray[np.bool_]],
    test: EmbeddingSet,
    config: LinearProbeConfig,
    classes: ClassChoice,
    uncertainty: tasks.Uncertainty,
    **facts: str | float,
) -> Table:
    """The test split under probes of each draw; every number is the mean over them."""
    logits_DNC, strength = probe(data, draws, config)
    table = tasks.classification(test.ids, test.label_N, logits_DNC, classes, uncertainty, name)
    labels = [int((drawn_N & (data.train_label_N >= 0)).sum()) for drawn_N in draws]
    table.facts |= {"labels": round(float(np.mean(labels)), 1), "draws": len(draws)}
    table.facts |= {"inverse_regularization": strength, **facts}
    return table
