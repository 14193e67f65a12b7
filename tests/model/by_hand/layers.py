"""Transformer blocks product by product, row by row where it matters, in plain float64 torch.

A state is {(product, modality name): rows [n, D]}; segments that do not exist are not in it. Dropout bits are worked
out here from Philox's words, one product at a time. Nothing here calls m5ds.model.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from m5ds.kernels.common.philox import Stream, random_words

State = dict[tuple[int, str], Tensor]
SITES = {"embedding": 0, "attention": 1, "feed_forward": 2}


def sees(block, names, query: str, key: str) -> bool:
    visibility = block.visibility
    if isinstance(visibility, dict):
        return key in visibility[query]
    if isinstance(visibility, str):
        return {"identity": query == key, "all": True, "off_diagonal": query != key}[visibility]
    return bool(visibility[names.index(query)][names.index(key)])


def expanded(spec) -> list[tuple[str, object]]:
    """(layer name, its block) of every layer in order."""
    return [(f"{name}_{n}", block) for name, block in spec.blocks.items() for n in range(block.repeat)]


def num_unimodal(spec) -> int:
    """Layers before the first one in which some row sees another modality."""
    names = spec.modality_names
    for number, (_, block) in enumerate(expanded(spec)):
        if any(sees(block, names, i, j) for i in names for j in names if i != j):
            return number
    return len(expanded(spec))


class Dropout:
    """The run's dropout: which features and which attention weights are kept, for one product at a time."""

    def __init__(self, model, batch, seed: int, training: bool) -> None:
        self.names, self.batch, self.seed = model.names, batch, seed
        self.hidden = model.spec.dropout if training else 0.0
        self.of_weights = model.spec.attention_dropout if training else 0.0

    def _key(self, b: int) -> dict:
        return {"seed": self.seed, "draw": int(self.batch.draw_B[b]), "product": self.batch.product_B[b]}

    def rows(self, x: Tensor, b: int, name: str, layer: int, site: str) -> Tensor:
        if self.hidden == 0.0:
            return x
        calls = -(-x.shape[1] // 4)
        words = random_words(
            **self._key(b),
            stream=Stream.HIDDEN_DROPOUT,
            modality=self.names.index(name),
            index=4 * layer + SITES[site],
            element=torch.arange(len(x))[:, None] * calls + torch.arange(calls),
        )
        word = torch.stack(words, -1).flatten(1)[:, : x.shape[1]]
        return x * (word >= round(self.hidden * 2**32)) / (1 - self.hidden)

    def weights(self, share_HQK: Tensor, b: int, layer: int, query_Q: Tensor, key_K: Tensor) -> Tensor:
        """`query_Q`, `key_K`: places of the rows in the product, each segment beginning at a multiple of four."""
        if self.of_weights == 0.0:
            return share_HQK
        words = random_words(
            **self._key(b),
            stream=Stream.ATTENTION_DROPOUT,
            modality=torch.arange(len(share_HQK))[:, None, None],
            index=layer,
            element=query_Q[:, None] * 65536 + key_K // 4,
        )
        word = torch.stack(words, -1).gather(-1, (key_K % 4).expand(share_HQK.shape)[..., None])[..., 0]
        return share_HQK * (word >= round(self.of_weights * 2**32)) / (1 - self.of_weights)


def block_forward(model, state: State, number: int, dropout: Dropout) -> State:
    """The state after layer `number`."""
    name, block = expanded(model.spec)[number]
    names = model.names
    layer = _Layer(model, name, block)
    updated = [m for m in names if block.updates is None or m in block.updates]
    found = {}
    for b in {b for b, _ in state}:
        segments = {m: state[b, m] for m in names if (b, m) in state}
        attended = _attention(layer, segments, updated, b, number, dropout)
        for m, x in segments.items():
            if m in updated:
                x = x + dropout.rows(layer.linear("output", m, "out", attended[m]), b, m, number, "attention")
                if block.norm == "post":
                    x = layer.norm("output", m, x)
                h = layer.norm("ffn", m, x) if block.norm == "pre" else x
                h = layer.linear("ffn", m, "fc2", layer.activation(layer.linear("ffn", m, "fc1", h)))
                x = x + dropout.rows(h, b, m, number, "feed_forward")
                if block.norm == "post":
                    x = layer.norm("ffn", m, x)
            found[b, m] = x
    return found


class _Layer:
    """The weights of one layer by what they do and which modality's rows they serve."""

    def __init__(self, model, name: str, block) -> None:
        self.name, self.block, self.names, self.eps = name, block, model.names, model.spec.layer_norm_eps
        self.parameters = model.weights
        self.num_heads = block.num_heads or model.spec.num_heads

    def _weight(self, what: str, m: str, kind: str) -> Tensor:
        shared = (self.block.ffn_weights if what == "ffn" else self.block.attention_weights) == "shared"
        return self.parameters[f"blocks.{self.name}.{what}.{'shared' if shared else m}.{kind}"]

    def linear(self, what: str, m: str, which: str, x: Tensor) -> Tensor:
        return x @ self._weight(what, m, f"{which}.weight").T + self._weight(what, m, f"{which}.bias")

    def norm(self, what: str, m: str, x: Tensor) -> Tensor:
        weight, bias = (self._weight(what, m, f"norm.{kind}") for kind in ("weight", "bias"))
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * weight + bias

    def activation(self, x: Tensor) -> Tensor:
        return {
            "gelu": lambda: x * (1 + torch.erf(x / 2**0.5)) / 2,
            "quick_gelu": lambda: x / (1 + torch.exp(-1.702 * x)),
            "relu": lambda: x.clamp(min=0),
        }[self.block.activation]()


def _attention(layer: _Layer, segments: dict[str, Tensor], updated, b: int, number: int, dropout: Dropout) -> dict:
    width = next(iter(segments.values())).shape[1]
    seen_of = {m: [k for k in segments if sees(layer.block, layer.names, m, k)] for m in updated if m in segments}
    place, qkv, offset = {}, {}, 0
    for m, x in segments.items():
        place[m] = offset + torch.arange(len(x))
        offset += -(-len(x) // 4) * 4
        if m in seen_of or any(m in seen for seen in seen_of.values()):
            h = layer.norm("attention", m, x) if layer.block.norm == "pre" else x
            qkv[m] = layer.linear("attention", m, "qkv", h).view(len(x), 3, layer.num_heads, -1).permute(1, 2, 0, 3)
    found = {}
    for m, seen in seen_of.items():
        if not seen:
            found[m] = torch.zeros_like(segments[m])
            continue
        query_HQD = qkv[m][0]
        key_HKD, value_HKD = (torch.cat([qkv[k][part] for k in seen], 1) for part in (1, 2))
        score_HQK = query_HQD @ key_HKD.mT / (width / layer.num_heads) ** 0.5
        key_K = torch.cat([place[k] for k in seen])
        if m in layer.block.causal and m in seen:
            own_K = torch.cat([torch.full((len(segments[k]),), k == m) for k in seen])
            score_HQK = score_HQK.masked_fill(own_K & (key_K > place[m][:, None]), -torch.inf)
        share_HQK = dropout.weights(F.softmax(score_HQK, -1), b, number, place[m], key_K)
        found[m] = (share_HQK @ value_HKD).transpose(0, 1).reshape(-1, width)
    return found
