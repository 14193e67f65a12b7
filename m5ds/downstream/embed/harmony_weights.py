"""How a model weighs its losses, by modality and pair: what the report draws as a heat map (PAPER.md section 1.1).

Shape letters: N products, M modalities, D width, K weighed terms.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.base import Term


@torch.no_grad()
def mean_weights(
    model: M5ForPretraining, fused_NMD: NDArray[np.float32], present_NM: NDArray[np.bool_]
) -> dict[str, Any]:
    """What the model's harmony makes of these products: `kind`, `weighs`, `names` and `weight` [M][M].

    Off the diagonal the weight of a loss between two modalities (one number, at both places), on it of one modality's:
    the mean over the products that have the modalities, None where none has them or the model has no such loss. What
    the configuration leaves unweighed is 1. `kind: none`: the kind alone, since every loss weighs 1.
    """
    config, names = model.spec.harmony, model.names
    if config.kind == "none":
        return {"kind": config.kind}
    device = next(model.parameters()).device
    present = torch.from_numpy(np.ascontiguousarray(present_NM)).to(device)
    weight: list[list[float | None]] = [[None] * len(names) for _ in names]

    def having(term: Term) -> Tensor:
        return present[:, list(term.modalities)].all(dim=1)

    def put(term: Term, value: float) -> None:
        first, last = term.modalities[0], term.modalities[-1]
        weight[first][last] = weight[last][first] = value

    for _, objective in model.objectives.chosen():
        for term in objective.terms:
            if term.modalities and bool(having(term).any()):
                put(term, 1.0)
    active = tuple(bool(having(term).any()) for _, term in model.harmonised)
    found = model.harmony(torch.from_numpy(fused_NMD).to(device), present, active).terms
    for k, (_, term) in enumerate(model.harmonised):
        if active[k]:
            put(term, _mean(k, having(term), found.scale_K, found.loss_BK, found.logit_BK))
    return {"kind": config.kind, "weighs": config.weighs, "names": list(names), "weight": weight}


def _mean(column: int, rows_N: Tensor, common: Tensor | None, *by_product: Tensor | None) -> float:
    """A term's weight: common to all products, or the mean of the first that is given by product, or 1."""
    if common is not None:
        return round(float(common[column]), 4)
    given = next((weights for weights in by_product if weights is not None), None)
    return 1.0 if given is None else round(float(given[rows_N, column].double().mean()), 4)
