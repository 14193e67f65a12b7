"""How the losses weigh each other, from the formulas in DESIGN 3.4 and PAPER 1.1, product by product."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Weights:
    """Factors by (product, modality) or (product, pair) inside the sums, and by term on whole losses; missing: 1."""

    loss: dict = field(default_factory=dict)
    logit: dict = field(default_factory=dict)
    scale: dict = field(default_factory=dict)
    penalty: Tensor | float = 0.0


def weights(model, summaries: dict[tuple[int, str], Tensor], num_products: int, active: dict[str, bool]) -> Weights:
    """`summaries`: fused vectors of present modalities. `active`: which terms (modalities and pairs) have targets."""
    config = model.spec.harmony
    found = Weights()
    if config.kind == "none":
        return found
    pairs = [tuple(pair) for pair in model.pair_names]
    weighed = config.objectives or ["masked", "contrastive"]
    tasks = [(m, m) for m in model.names if model.spec.modalities[m].mask_ratio > 0]
    terms = (tasks if "masked" in weighed else []) + (pairs if "contrastive" in weighed else [])
    on_losses = config.kind == "paper_literal" or config.weighs in ("losses", "both")
    on_logits = config.kind == "paper_literal" or config.weighs in ("logits", "both")
    scores = model.weights.get("harmony.scores")
    if config.kind == "cosine":
        for b in range(num_products):
            graph = _cosine_graph({m: vector for (owner, m), vector in summaries.items() if owner == b})
            for first, second in terms:
                for chosen, table in ((on_losses, found.loss), (on_logits, found.logit)):
                    if chosen:
                        table[b, first, second] = graph.get((first, second), 0.0)
        return found
    if config.kind == "learned":
        # The scores' order: that of the weighed objectives' terms.
        order = terms
        chosen = [active[term] for term in order]
        share = (
            torch.softmax(torch.stack([s for s, on in zip(scores, chosen, strict=True) if on]), 0)
            if any(chosen)
            else []
        )
        count = sum(chosen)
        on_terms = [term for term, on in zip(order, chosen, strict=True) if on]
        value = {term: count * part for term, part in zip(on_terms, share, strict=True)}
        found.penalty = config.strength * count * sum((part * (part * count).log() for part in share), torch.zeros(()))
    else:
        shaped = scores * scores.softmax(-1)
        names = list(model.names)
        value = {(i, j): shaped[names.index(i), names.index(j)] for i, j in terms}
    for term in terms:
        if on_losses:
            found.scale[term] = value.get(term, 1.0)
        for b in range(num_products):
            if on_logits:
                found.logit[b, *term] = value.get(term, 1.0)
    return found


def _cosine_graph(vectors: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    graph = {}
    for i, query in vectors.items():
        # A modality without a summary has a vector of zeros, and no weight.
        cosines = {j: query @ key / (query.norm() * key.norm()).clamp(min=1e-12) for j, key in vectors.items()}
        total = sum(math.e**value for value in cosines.values())
        row = {j: value * math.e**value / total for j, value in cosines.items()}
        norm = sum(value.square() for value in row.values()).clamp(min=1e-24).sqrt()
        graph |= {(i, j): value / norm for j, value in row.items()}
    return graph
