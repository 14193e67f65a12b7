"""How a model weighs its losses, by modality and pair: what the report draws as a heat map (PAPER.md section 1.1).

Shape letters: N products, M modalities, D width, P pairs.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.harmony import HarmonyWeights


@torch.no_grad()
def mean_weights(
    model: M5ForPretraining, fused_NMD: NDArray[np.float32], present_NM: NDArray[np.bool_]
) -> dict[str, Any]:
    """What the model's harmony makes of these products: `kind`, `weighs`, `names` and `weight` [M][M].

    Off the diagonal a contrastive pair's weight (one number, at both places), on it a masked task's: the mean over the
    products that have the modalities, None where none has them or the model has no such loss. What the configuration
    leaves unweighed is 1. `kind: none`: the kind alone, since every loss weighs 1.
    """
    config, names, pairs = model.spec.harmony, model.names, model.harmony.pairs
    if config.kind == "none":
        return {"kind": config.kind}
    device = next(model.parameters()).device
    present = torch.from_numpy(np.ascontiguousarray(present_NM)).to(device)
    tasks = [name in model.tasks and bool(present[:, m].any()) for m, name in enumerate(names)]
    shared = [bool((present[:, i] & present[:, j]).any()) for i, j in pairs]
    found: HarmonyWeights = model.harmony(torch.from_numpy(fused_NMD).to(device), present, (*tasks, *shared))
    weight: list[list[float | None]] = [[None] * len(names) for _ in names]
    for m, counted in enumerate(tasks):
        if counted:
            weight[m][m] = _mean(m, present[:, m], found.task_scale_M, found.task_loss_BM, found.task_logit_BM)
    for p, ((i, j), counted) in enumerate(zip(pairs, shared, strict=True)):
        if counted:
            rows = present[:, i] & present[:, j]
            value = _mean(p, rows, found.pair_scale_P, found.pair_loss_BP, found.pair_logit_BP)
            weight[i][j] = weight[j][i] = value
    return {"kind": config.kind, "weighs": config.weighs, "names": list(names), "weight": weight}


def _mean(column: int, rows_N: Tensor, common: Tensor | None, *by_product: Tensor | None) -> float:
    """A term's weight: common to all products, or the mean of the first that is given by product, or 1."""
    if common is not None:
        return round(float(common[column]), 4)
    given = next((weights for weights in by_product if weights is not None), None)
    return 1.0 if given is None else round(float(given[rows_N, column].double().mean()), 4)
