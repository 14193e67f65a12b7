"""Transformer blocks on packed rows: visibility matrix, shared or per-modality weights, pre or post norm (DESIGN 3.3).

T packed rows, D hidden width, H heads. A part is a run of consecutive rows that one set of weights owns: the slab of a
modality, or a run of neighbouring slabs where weights are shared. Parts may hold zero rows; their modules are called
all the same, so that every rank makes the same calls (DESIGN 3.6).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.model.dropout import ATTENTION, FEED_FORWARD, drop_rows
from m5ds.model.fusion import LayerSpec


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": _quick_gelu, "relu": F.relu}


class AttentionWeights(nn.Module):
    """Query, key and value projections of rows, and the norm before them where the block is pre-norm."""

    def __init__(self, dim: int, eps: float, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps) if pre_norm else nn.Identity()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.qkv(self.norm(x_TD))


class OutputWeights(nn.Module):
    """What follows the attention of updated rows: output projection, residual, and the norm where the block is post-
    norm.
    """

    def __init__(self, dim: int, eps: float, pre_norm: bool) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)
        self.norm = nn.Identity() if pre_norm else nn.LayerNorm(dim, eps=eps)

    def forward(self, x_TD: Tensor, attended_TD: Tensor, drop: Callable[[Tensor], Tensor]) -> Tensor:
        return self.norm(x_TD + drop(self.out(attended_TD)))


class FeedForward(nn.Module):
    """Two-layer perceptron with residual, pre or post norm."""

    def __init__(self, dim: int, hidden: int, eps: float, pre_norm: bool, activation: str) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_TD: Tensor, drop: Callable[[Tensor], Tensor]) -> Tensor:
        h_TD = self.norm(x_TD) if self.pre_norm else x_TD
        x_TD = x_TD + drop(self.fc2(self.activation(self.fc1(h_TD))))
        return x_TD if self.pre_norm else self.norm(x_TD)


Part = tuple[str, int, int]
"""(key of the owning weights, first modality, one past the last modality)."""


def plan_parts(names: Sequence[str], chosen: Sequence[bool], shared: bool) -> tuple[Part, ...]:
    """Parts that cover all modalities in order. Key "" marks modalities that were not chosen and have no weights."""
    parts: list[Part] = []
    for m, name in enumerate(names):
        key = "" if not chosen[m] else "shared" if shared else name
        if parts and parts[-1][0] == key:
            parts[-1] = (key, parts[-1][1], m + 1)
        else:
            parts.append((key, m, m + 1))
    return tuple(parts)


class PackedBlock(nn.Module):
    """One layer. `forward` maps x_TD to x_TD of the same layout; rows of modalities that are not updated pass
    unchanged.
    """

    def __init__(
        self, spec: LayerSpec, names: Sequence[str], dim: int, *, eps: float, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.spec = spec
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.attention_parts = plan_parts(names, spec.attends, spec.shared_attention)
        self.output_parts = plan_parts(names, spec.updates, spec.shared_attention)
        self.ffn_parts = plan_parts(names, spec.updates, spec.shared_ffn)

        def owned(parts: tuple[Part, ...], make: Callable[[], nn.Module]) -> nn.ModuleDict:
            return nn.ModuleDict({key: make() for key in dict.fromkeys(part[0] for part in parts) if key})

        self.attention = owned(self.attention_parts, lambda: AttentionWeights(dim, eps, spec.pre_norm))
        self.output = owned(self.output_parts, lambda: OutputWeights(dim, eps, spec.pre_norm))
        self.ffn = owned(self.ffn_parts, lambda: FeedForward(dim, spec.ffn_dim, eps, spec.pre_norm, spec.activation))

    def forward(self, x_TD: Tensor, layout: PackedLayout, seed: int) -> Tensor:
        """`layout` lies on x's device; `seed` is the run's, the key of the dropout bits together with each product."""
        dim = x_TD.shape[1]
        qkv = [
            self.attention[key](x) if key else x.new_zeros(x.shape[0], 3 * dim)
            for (key, _, _), x in zip(self.attention_parts, _split(x_TD, layout, self.attention_parts), strict=True)
        ]
        heads = (self.spec.num_heads, dim // self.spec.num_heads)
        q_THD, k_THD, v_THD = _join(qkv).view(-1, 3, *heads).unbind(1)
        attended_THD = cross_modal_attention(
            q_THD,
            k_THD,
            v_THD,
            layout,
            self.spec.visibility,
            updates=self.spec.updates,
            causal=self.spec.causal,
            dropout=self.attention_dropout if self.training else 0.0,
            seed=seed,
            layer=self.spec.index,
        )
        xs = _split(x_TD, layout, self.output_parts)
        attended = _split(attended_THD.reshape(x_TD.shape), layout, self.output_parts)
        xs = [
            self.output[part[0]](x, a, self._drop(layout, part, seed, ATTENTION)) if part[0] else x
            for part, x, a in zip(self.output_parts, xs, attended, strict=True)
        ]
        if self.ffn_parts != self.output_parts:
            xs = _split(_join(xs), layout, self.ffn_parts)
        return _join(
            [
                self.ffn[part[0]](x, self._drop(layout, part, seed, FEED_FORWARD)) if part[0] else x
                for part, x in zip(self.ffn_parts, xs, strict=True)
            ]
        )

    def _drop(self, layout: PackedLayout, part: Part, seed: int, site: int) -> Callable[[Tensor], Tensor]:
        first_row = layout.slab[part[1]]
        probability = self.dropout if self.training else 0.0
        return lambda x_TD: drop_rows(x_TD, layout, first_row, probability, seed, self.spec.index, site)


def _split(x_TD: Tensor, layout: PackedLayout, parts: tuple[Part, ...]) -> Sequence[Tensor]:
    # split, not slices: the backward of a slice fills a whole buffer for every part.
    return (
        x_TD.split([layout.slab[stop] - layout.slab[start] for _, start, stop in parts]) if len(parts) > 1 else [x_TD]
    )


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
