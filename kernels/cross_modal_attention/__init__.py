"""Attention of packed rows inside each product under a visibility matrix over modalities (DESIGN.md 3.3 and 5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from m5ds.kernels.common.dispatch import choose_path
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.cross_modal_attention.dropout import Dropout
from m5ds.kernels.cross_modal_attention.reference import cross_modal_attention_reference
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec, Matrix
from m5ds.kernels.cross_modal_attention.torch_path import cross_modal_attention_torch
from m5ds.kernels.cross_modal_attention.validation import validate

__all__ = ["cross_modal_attention"]


def cross_modal_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: PackedLayout,
    visibility: Matrix | Tensor,
    *,
    updates: Sequence[bool] | None = None,
    causal: Sequence[bool] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    layer: int = 0,
    path: str | None = None,
) -> Tensor:
    """softmax(scale q k^T) v for every row over the rows of the same product whose modality it sees.

    T packed rows, H heads, D head dim (Triton: 32, 64, 96 or 128), M modalities of the layout.

    q_THD, k_THD, v_THD: [T, H, D], one dtype (bf16, fp16, fp32; fp64 outside Triton) and one device, any strides.
    visibility: M x M bools; rows of modality i see key rows of modality j iff visibility[i][j] and j has rows.
    updates: M bools (default: all); rows of the others are not computed: zero out, zero gradient to q.
    causal: M bools (default: none); a row of such a modality sees, of its own segment, only rows up to itself.
    scale: default D ** -0.5.
    dropout, seed, layer: probability in [0, 1) on the attention weights, keyed as dropout.py says.
    path: `reference`, `torch` or `triton`; default: `triton` on CUDA, `torch` elsewhere (`dispatch.last_path` tells).

    Returns out_THD in the inputs' dtype. A row that sees no key gives zero and gets zero gradients; zero rows give zero
    gradient tensors, never None. The same inputs give the same bits, forward and backward.
    Raises `ValueError` naming the argument that is wrong.
    """
    spec = AttentionSpec.build(layout.num_modalities, visibility, updates, causal)
    chosen = choose_path("cross_modal_attention", q_THD.device, path)
    drop = Dropout(float(dropout), int(seed), int(layer))
    validate(q_THD, k_THD, v_THD, layout, drop, triton=chosen == "triton")
    scale = q_THD.shape[-1] ** -0.5 if scale is None else float(scale)
    if chosen == "reference":
        return cross_modal_attention_reference(q_THD, k_THD, v_THD, layout, spec, scale=scale, dropout=drop)
    if chosen == "torch":
        return cross_modal_attention_torch(q_THD, k_THD, v_THD, layout, spec, scale=scale, dropout=drop)
    from m5ds.kernels.cross_modal_attention.triton_path import cross_modal_attention_triton

    return cross_modal_attention_triton(q_THD, k_THD, v_THD, layout, spec, scale=scale, dropout=drop)
