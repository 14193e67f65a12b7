"""How the losses weigh each other: SCALE's self-harmonised weights and their well-posed relatives.

Sources: DESIGN 3.4, PAPER 1.1 and 1.3. B products, M modalities, K loss terms: those of the weighed objectives that
are about one modality or a pair of them. All in fp32.

none: every weight is 1.

learned: w = K * softmax(s) over the K terms that have targets in this step, s a free parameter initialised to zero, and
total = sum_k w_k L_k + strength * K * KL(softmax(s) || uniform). Losses are bounded below, so the total is, and its
minimum over s lies at the finite point softmax(s)_k ~ exp(-L_k / strength): a smaller strength favours easy terms
more, a large one approaches equal weights. Without the KL term all weight would flow to the easiest term.

cosine: the released code's parameter-free graph of each product. C = cosines of the fused summaries of its present
modalities, G = C * softmax(C) over the present columns, rows of G to unit L2 norm. A term of the pair (i, j) takes
G[i, j], one of modality i G[i, i].

paper_literal: Eq. 3 as printed. A global S [M, M] initialised to zero, S' = S * softmax(S), weights on losses and on
logits alike. At S = 0 every feature gradient is zero, then S turns negative and the total falls without bound: for
the record only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m5ds.config import HarmonyConfig
from m5ds.model.objectives.base import Term, TermWeights
from m5ds.model.precision import at_least_float32


class HarmonyWeights(NamedTuple):
    """What the weighed terms get, K of them in their order. A tuple, which ZeRO-3's hooks can look into."""

    terms: TermWeights = TermWeights()
    penalty: Tensor | None = None
    """Scalar that the total takes once per optimizer step."""


class Harmony(nn.Module):
    """The weights of one forward for the K `terms`, each of one modality (m,) or of a pair (i, j) of the M."""

    def __init__(self, config: HarmonyConfig, num_modalities: int, terms: Sequence[Term]) -> None:
        super().__init__()
        self.config, self.num_modalities = config, num_modalities
        self.rows, self.columns = ([term.modalities[end] for term in terms] for end in (0, -1))
        if config.kind == "learned":
            self.scores = nn.Parameter(torch.zeros(len(terms)))
        elif config.kind == "paper_literal":
            self.scores = nn.Parameter(torch.zeros(num_modalities, num_modalities))

    def initial_value(self, name: str) -> float | None:
        """Every score starts at zero (m5ds.model.initialization)."""
        return 0.0 if name == "scores" else None

    def forward(self, summary_BMD: Tensor, present_BM: Tensor, active_K: tuple[bool, ...]) -> HarmonyWeights:
        """Weights for B products from the fused summaries (`cosine`) or the scores.

        `active_K`: which terms have targets in this optimizer step, on any rank.
        """
        config, num_products = self.config, len(present_BM)
        if config.kind == "none" or not self.rows:
            return HarmonyWeights()
        penalty = None
        if config.kind == "learned":
            weight_K, penalty = self._learned(active_K)
            weight_BK = weight_K.expand(num_products, -1)
        else:
            if config.kind == "cosine":
                graph_BMM = cosine_graph(summary_BMD, present_BM)
            else:
                scores_MM = at_least_float32(self.scores)
                graph_BMM = (scores_MM * scores_MM.softmax(-1)).expand(num_products, *scores_MM.shape)
            weight_BK = graph_BMM[:, self.rows, self.columns]
        literal = config.kind == "paper_literal"
        on_losses, on_logits = literal or config.weighs != "logits", literal or config.weighs != "losses"
        by_product = config.kind == "cosine"
        terms = TermWeights(
            loss_BK=weight_BK if on_losses and by_product else None,
            logit_BK=weight_BK if on_logits else None,
            scale_K=_row(weight_BK) if on_losses and not by_product else None,
        )
        return HarmonyWeights(terms, penalty)

    def _learned(self, active_K: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
        """Weights [K] and the penalty. Terms without targets take no part: weight 1, no gradient."""
        config, count = self.config, sum(active_K)
        scores_K = at_least_float32(self.scores)
        off_K = ~torch.tensor(active_K, device=scores_K.device)
        if count == 0:
            return torch.ones_like(scores_K), (scores_K * 0.0).sum()
        log_share_K = scores_K.masked_fill(off_K, float("-inf")).log_softmax(-1).masked_fill(off_K, 0.0)
        share_K = log_share_K.exp().masked_fill(off_K, 0.0)
        divergence = (share_K * (log_share_K + math.log(count))).sum()
        return (count * share_K).masked_fill(off_K, 1.0), config.strength * count * divergence


def _row(weights: Tensor) -> Tensor:
    """The weights that all products share, from their expansion over products; an empty batch has none to give."""
    return weights[0] if len(weights) else weights.new_ones(weights.shape[1])


def cosine_graph(summary_BMD: Tensor, present_BM: Tensor) -> Tensor:
    """G_BMM fp32: rows and columns of absent modalities are zero, rows of present ones have unit L2 norm."""
    unit_BMD = F.normalize(at_least_float32(summary_BMD), dim=-1)
    cosine_BMM = unit_BMD @ unit_BMD.transpose(1, 2)
    visible_BMM = present_BM[:, :, None] & present_BM[:, None, :]
    # A finite pivot: a row that sees nothing must not become NaN.
    share_BMM = cosine_BMM.masked_fill(~visible_BMM, -1e4).softmax(-1) * visible_BMM
    return F.normalize(cosine_BMM * share_BMM, dim=-1)
