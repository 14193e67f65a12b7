"""The whole forward by hand: states, summaries, every loss and the total, in float64 and product by product.

It shares the parameters with the model under test, so gradients of its total can be compared too. Masks, dropout bits,
standardised targets, InfoNCE, counts and weights are worked out here; nothing calls m5ds.model.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from by_hand import harmony, layers, rows


@dataclass
class Result:
    unimodal: dict[tuple[int, str], Tensor]
    """Projected, unit norm."""
    fused: dict[tuple[int, str], Tensor]
    """Summaries after fusion."""
    states: dict[tuple[int, str], Tensor]
    losses: dict[str, Tensor] = field(default_factory=dict)
    total: Tensor | float = 0.0
    targets: dict[str, int] = field(default_factory=dict)
    """Targets of every loss in this batch, and products."""


TASKS = {"image": "mrp", "text": "mlm", "table": "mem", "video": "mfp", "audio": "mam"}
RAW = ("image_patches", "video_tubes", "audio_patches")


class View:
    """What is taken from the model under test: its configuration, its names and its parameters."""

    def __init__(self, model) -> None:
        self.spec, self.config, self.names = model.spec, model.config, model.names
        contrastive = getattr(model.objectives, "contrastive", None)
        self.pair_names = contrastive.pair_names if contrastive is not None else ()
        self.weights = dict(model.named_parameters())


def forward(model, batch, *, counts: dict[str, int], seed: int, masked: bool, training: bool) -> Result:
    """What the model's forward must return for these counts (global ones may be larger than the batch's own)."""
    model = View(model)
    spec = model.spec
    segments = rows.contents(model, batch, seed, masked)
    dropout = layers.Dropout(model, batch, seed, training)
    state = {
        (b, m): dropout.rows(rows.embedded(model, m, content), b, m, 0, "embedding")
        for (b, m), content in segments.items()
    }
    boundary = layers.num_unimodal(spec)
    for number in range(boundary):
        state = layers.block_forward(model, state, number, dropout)
    is_present = {
        (b, m) for i, m in enumerate(model.names) for b in range(batch.num_products) if batch.present_BM[b, i]
    }
    unimodal = {key: _projected(model, *key, state) for key in is_present if _is_contrasted(model, key[1])}
    if spec.absent == "token":
        table = model.weights["absent.tokens_MD"]
        for b in range(batch.num_products):
            for i, m in enumerate(model.names):
                state.setdefault((b, m), table[i][None])
    for number in range(boundary, len(layers.expanded(spec))):
        state = layers.block_forward(model, state, number, dropout)
    fused = {key: _fused_summary(model, key[1], state[key]) for key in is_present}
    result = Result(unimodal, fused, state)
    _add_losses(result, model, batch, segments, counts, masked)
    return result


def _is_contrasted(model, name: str) -> bool:
    return any(name in pair for pair in model.pair_names)


def _summary(kind: str, x: Tensor) -> Tensor:
    return {"learned": lambda: x[0], "token": lambda: x[0], "mean": lambda: x.sum(0) / len(x), "last": lambda: x[-1]}[
        kind
    ]()


def _projected(model, b: int, name: str, state) -> Tensor:
    x = _summary(model.spec.modalities[name].cls, state[b, name])
    own = {what: model.weights[f"projections.{name}.{what}"] for what in PROJECTION}
    x = F.layer_norm(x, x.shape, own["norm.weight"], own["norm.bias"], model.spec.layer_norm_eps)
    x = own["projection.weight"] @ x
    return x / x.square().sum().sqrt()


PROJECTION = ("norm.weight", "norm.bias", "projection.weight")


def _fused_summary(model, name: str, x: Tensor) -> Tensor:
    kind = model.spec.modalities[name].cls
    if kind == "none":
        return torch.zeros_like(x[0])
    summary = _summary(kind, x)
    found = layers.expanded(model.spec)
    if found and found[-1][1].norm == "pre":
        centred = summary - summary.mean()
        summary = centred / (centred.square().mean() + model.spec.layer_norm_eps).sqrt()
    return summary


def _add_losses(result: Result, model, batch, segments, counts, masked: bool) -> None:
    spec = model.spec
    tasks = [m for m in model.names if masked and spec.modalities[m].mask_ratio > 0]
    active = {(m, m): m in tasks and counts[TASKS[m]] > 0 for m in model.names}
    active |= {(i, j): counts[f"itc/{i}-{j}"] > 0 for i, j in model.pair_names}
    weights = harmony.weights(model, result.fused, batch.num_products, active)
    for m in tasks:
        summed, number = torch.zeros((), dtype=torch.float64), 0
        for b in range(batch.num_products):
            if (b, m) in segments:
                content = segments[b, m]
                number += int(content.masked.sum())
                each = _head_losses(model, m, content, result.states[b, m], weights.logit.get((b, m, m), 1.0))
                summed = summed + (each * weights.loss.get((b, m, m), 1.0)).sum()
        name = TASKS[m]
        result.targets[name] = number
        result.losses[name] = summed / max(counts[name], 1)
        result.total = result.total + result.losses[name] * spec.modalities[m].loss_weight * weights.scale.get(
            (m, m), 1.0
        )
    for pair in model.pair_names:
        name = f"itc/{pair[0]}-{pair[1]}"
        result.targets[name] = sum(
            (b, pair[0]) in result.unimodal and (b, pair[1]) in result.unimodal for b in range(batch.num_products)
        )
        summed = _contrastive(model, result.unimodal, pair, batch.num_products, weights)
        result.losses[name] = summed / max(counts[name], 1)
        result.total = result.total + result.losses[name] * spec.objectives["contrastive"].get(
            "weight", 1.0
        ) * weights.scale.get(tuple(pair), 1.0)
    result.targets["products"] = batch.num_products
    result.total = result.total + weights.penalty * (batch.num_products / max(counts["products"], 1))


def _head_losses(model, name: str, content, x: Tensor, logit_weight) -> Tensor:
    """The loss of every masked row of one segment."""
    settings = model.spec.modalities[name]
    content_rows = x[1:] if settings.cls == "learned" else x
    hidden = content_rows[content.masked]

    def own(what: str) -> Tensor:
        return model.weights[f"objectives.masked.heads.{name}.{what}"]

    def norm(h: Tensor) -> Tensor:
        return F.layer_norm(h, h.shape[-1:], own("norm.weight"), own("norm.bias"), model.spec.layer_norm_eps)

    if settings.head == "regression":
        predicted = (norm(hidden) @ own("decoder.weight").T + own("decoder.bias")) * logit_weight
        target = content.values[content.masked].double()
        if settings.input.kind in RAW and len(target):
            deviation = (target.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            target = (target - target.mean(1, keepdim=True)) / deviation
        return (predicted - target).square().mean(1)
    h = norm(F.gelu(hidden @ own("transform.weight").T + own("transform.bias")))
    logits = (h @ model.weights[f"embeddings.{name}_token"].T + own("decoder_bias")) * logit_weight
    return logits.exp().sum(1).log() - logits.gather(1, content.token[content.masked][:, None])[:, 0]


def _contrastive(model, unimodal, pair, num_products: int, weights: harmony.Weights) -> Tensor:
    """Mean of the two directions of InfoNCE, summed over the products that have both modalities."""
    config = model.spec.objectives["contrastive"]
    owners = [b for b in range(num_products) if all((b, m) in unimodal for m in pair)]
    if config.get("learn_temperature", True):
        scale = model.weights["objectives.contrastive.logit_scale"][0].exp()
    else:
        scale = torch.tensor(1 / config["temperature"], dtype=torch.float64)
    scale = scale.clamp(max=100.0)
    summed = torch.zeros((), dtype=torch.float64)
    for query, key in (pair, pair[::-1]):
        for b in owners:
            similarity = torch.stack([unimodal[b, query] @ unimodal[other, key] for other in owners])
            logits = similarity * scale * weights.logit.get((b, *pair), 1.0)
            loss = torch.logsumexp(logits, 0) - logits[owners.index(b)]
            summed = summed + loss * weights.loss.get((b, *pair), 1.0) / 2
    return summed
