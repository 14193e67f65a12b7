"""How the losses weigh each other: SCALE's self-harmonised weights and their well-posed relatives.

Sources: DESIGN 3.4, PAPER 1.1 and 1.3. B products, M modalities, P contrastive pairs, K loss terms (every masked task
and every pair of the model). All in fp32.

none: every weight is 1.

learned: w = K * softmax(s) over the K terms that have targets in this step, s a free parameter initialised to zero, and
total = sum_k w_k L_k + strength * K * KL(softmax(s) || uniform). Losses are bounded below, so the total is, and its
minimum over s lies at the finite point softmax(s)_k ~ exp(-L_k / strength): a smaller strength favours easy terms
more, a large one approaches equal weights. Without the KL term all weight would flow to the easiest term.

cosine: the released code's parameter-free graph of each product. C = cosines of the fused summaries of its present
modalities, G = C * softmax(C) over the present columns, rows of G to unit L2 norm. Pair (i, j) takes G[i, j],
modality i's task G[i, i].

paper_literal: Eq. 3 as printed. A global S [M, M] initialised to zero, S' = S * softmax(S), weights on losses and on
logits alike. At S = 0 every feature gradient is zero, then S turns negative and the total falls without bound: for
the record only.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m5ds.config import HarmonyConfig
from m5ds.model.precision import wide


class HarmonyWeights(NamedTuple):
    """Factors on losses and on logits, None where they are 1; all fp32. A tuple, which ZeRO-3's hooks can look into."""

    pair_loss_BP: Tensor | None = None
    """Of each query's contrastive loss, inside the sum over products."""
    pair_logit_BP: Tensor | None = None
    task_loss_BM: Tensor | None = None
    """Of each masked row's loss, by its product and modality."""
    task_logit_BM: Tensor | None = None
    pair_scale_P: Tensor | None = None
    """Of whole contrastive losses, in the total only: the reported losses stay as they are."""
    task_scale_M: Tensor | None = None
    penalty: Tensor | None = None
    """Scalar that the total takes once per optimizer step."""


class Harmony(nn.Module):
    """The weights of one forward. `pairs` are index pairs (i, j), i < j, into the M modalities."""

    def __init__(self, config: HarmonyConfig, num_modalities: int, pairs: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.config, self.num_modalities, self.pairs = config, num_modalities, pairs
        if config.kind == "learned":
            self.scores = nn.Parameter(torch.zeros(num_modalities + len(pairs)))
        elif config.kind == "paper_literal":
            self.scores = nn.Parameter(torch.zeros(num_modalities, num_modalities))

    def initial_value(self, name: str) -> float | None:
        """Every score starts at zero (m5ds.model.initialization)."""
        return 0.0 if name == "scores" else None

    def forward(self, summary_BMD: Tensor, present_BM: Tensor, active_K: tuple[bool, ...]) -> HarmonyWeights:
        """Weights for B products from the fused summaries (`cosine`) or the scores.

        `active_K`: which terms, the M tasks and then the P pairs, have targets in this optimizer step, on any rank.
        """
        config, num = self.config, self.num_modalities
        if config.kind == "none":
            return HarmonyWeights()
        penalty = None
        if config.kind == "learned":
            weight_K, penalty = self._learned(active_K)
            task_BM = weight_K[:num].expand(len(present_BM), -1)
            pair_BP = weight_K[num:].expand(len(present_BM), -1)
        else:
            if config.kind == "cosine":
                graph_BMM = cosine_graph(summary_BMD, present_BM)
            else:
                scores_MM = wide(self.scores)
                graph_BMM = (scores_MM * scores_MM.softmax(-1)).expand(len(present_BM), num, num)
            task_BM = graph_BMM.diagonal(dim1=1, dim2=2)
            pair_BP = graph_BMM[:, [i for i, _ in self.pairs], [j for _, j in self.pairs]]
        literal = config.kind == "paper_literal"
        on_losses, on_logits = literal or config.weighs != "logits", literal or config.weighs != "losses"
        by_product = config.kind == "cosine"
        pair = pair_BP if config.contrastive else None
        task = task_BM if config.masked else None
        return HarmonyWeights(
            pair_loss_BP=pair if on_losses and by_product else None,
            pair_logit_BP=pair if on_logits else None,
            task_loss_BM=task if on_losses and by_product else None,
            task_logit_BM=task if on_logits else None,
            pair_scale_P=_row(pair) if on_losses and not by_product else None,
            task_scale_M=_row(task) if on_losses and not by_product else None,
            penalty=penalty,
        )

    def _learned(self, active_K: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
        """Weights [K] and the penalty. Terms that are switched off or have no targets take no part: weight 1, no
        gradient.
        """
        config, num = self.config, self.num_modalities
        chosen = [on and (config.masked if k < num else config.contrastive) for k, on in enumerate(active_K)]
        scores_K = wide(self.scores)
        off_K = ~torch.tensor(chosen, device=scores_K.device)
        count = sum(chosen)
        if count == 0:
            return torch.ones_like(scores_K), (scores_K * 0.0).sum()
        log_share_K = scores_K.masked_fill(off_K, float("-inf")).log_softmax(-1).masked_fill(off_K, 0.0)
        share_K = log_share_K.exp().masked_fill(off_K, 0.0)
        divergence = (share_K * (log_share_K + math.log(count))).sum()
        return (count * share_K).masked_fill(off_K, 1.0), config.strength * count * divergence


def _row(weights: Tensor | None) -> Tensor | None:
    """The weights that all products share, from their expansion over products; an empty batch has none to give."""
    if weights is None:
        return None
    return weights[0] if len(weights) else weights.new_ones(weights.shape[1])


def cosine_graph(summary_BMD: Tensor, present_BM: Tensor) -> Tensor:
    """G_BMM fp32: rows and columns of absent modalities are zero, rows of present ones have unit L2 norm."""
    unit_BMD = F.normalize(wide(summary_BMD), dim=-1)
    cosine_BMM = unit_BMD @ unit_BMD.transpose(1, 2)
    visible_BMM = present_BM[:, :, None] & present_BM[:, None, :]
    # A finite pivot: a row that sees nothing must not become NaN.
    share_BMM = cosine_BMM.masked_fill(~visible_BMM, -1e4).softmax(-1) * visible_BMM
    return F.normalize(cosine_BMM * share_BMM, dim=-1)
