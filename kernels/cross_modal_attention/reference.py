"""Definition of cross_modal_attention: dense attention product by product, in the inputs' dtype (also float64).

Shape letters: T packed rows, H heads, D head dim; Q, K rows of one query segment and of the keys it sees.
"""

import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.cross_modal_attention.dropout import Dropout, keep_mask, segment_offsets
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec


def segment_slice(layout: PackedLayout, product: int, modality: int) -> slice:
    """The packed rows of one segment, from the host's lengths."""
    start = layout.slab[modality] + sum(row[modality] for row in layout.lengths[:product])
    return slice(start, start + layout.lengths[product][modality])


def cross_modal_attention_reference(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: PackedLayout,
    spec: AttentionSpec,
    *,
    scale: float,
    dropout: Dropout,
) -> Tensor:
    """out_THD: softmax(scale * q k^T) v of every updated segment over the rows it sees, zero elsewhere, q's dtype."""
    empty_0HD = q_THD[:0]
    out_mb: list[Tensor] = []
    for m in range(layout.num_modalities):
        for b in range(layout.num_products):
            q_QHD = q_THD[segment_slice(layout, b, m)]
            seen = [segment_slice(layout, b, j) for j in spec.keys_of(m)]
            k_KHD = torch.cat([empty_0HD, *(k_THD[s] for s in seen)])
            v_KHD = torch.cat([empty_0HD, *(v_THD[s] for s in seen)])
            if q_QHD.shape[0] == 0 or k_KHD.shape[0] == 0:
                out_mb.append(torch.zeros_like(q_QHD))
                continue
            score_HQK = torch.einsum("qhd,khd->hqk", q_QHD, k_KHD) * scale
            if spec.is_causal(m):
                score_HQK = score_HQK.masked_fill(~_causal_QK(layout, spec, b, m).to(q_THD.device), float("-inf"))
            weight_HQK = score_HQK.softmax(-1)
            if dropout.probability > 0.0:
                weight_HQK = weight_HQK * _kept_HQK(layout, spec, b, m, dropout, q_THD) * dropout.scale
            out_mb.append(torch.einsum("hqk,khd->qhd", weight_HQK, v_KHD))
    connected = 0.0 * (q_THD[:0].sum() + k_THD[:0].sum() + v_THD[:0].sum())
    return torch.cat([empty_0HD, *out_mb]) + connected


def _causal_QK(layout: PackedLayout, spec: AttentionSpec, product: int, modality: int) -> Tensor:
    """bool [Q, K]: True = visible; only the columns of the query's own segment are restricted."""
    num_queries = layout.lengths[product][modality]
    columns = []
    for j in spec.keys_of(modality):
        visible = torch.ones(num_queries, layout.lengths[product][j], dtype=torch.bool)
        columns.append(visible.tril() if j == modality else visible)
    return torch.cat(columns, 1)


def _kept_HQK(
    layout: PackedLayout, spec: AttentionSpec, product: int, modality: int, dropout: Dropout, like: Tensor
) -> Tensor:
    """1 where a weight is kept, 0 where it is dropped, in the dtype of the weights."""
    lengths = layout.lengths[product]
    offsets = segment_offsets(lengths)
    query_1Q = offsets[modality] + torch.arange(lengths[modality])[None]
    key_1K = torch.cat([offsets[j] + torch.arange(lengths[j]) for j in spec.keys_of(modality)])[None]
    of = slice(product, product + 1)
    product_1, draw_1 = layout.product_B[of].cpu(), layout.draw_B[of].cpu()
    return keep_mask(dropout, product_1, draw_1, like.shape[1], query_1Q, key_1K)[0].to(like.device, like.dtype)
