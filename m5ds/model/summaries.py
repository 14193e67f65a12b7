"""One vector per product and modality out of a packed buffer, before fusion (projected) and after it (DESIGN 3.2), and
one vector for a product out of those.

B products, M modalities, T packed rows, D width, R the projection's width, W width of the product's vector, n products
that have the modality.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m5ds.kernels.common.layout import PackedLayout
from m5ds.model.precision import at_least_float32

OPERATIONS = ("concat", "mean", "sum")
"""How `pool` joins modalities."""


class RowIndex:
    """Host-side index of a layout: which products have each modality, and where their segments and content rows lie."""

    def __init__(self, layout: PackedLayout, with_cls: tuple[bool, ...], device: torch.device) -> None:
        """`layout` on the CPU; `with_cls[m]`: segments of modality m begin with a learned row. Indices go to
        `device`.
        """
        self.layout, self._with_cls, self._device = layout, with_cls, device
        self.products = [self._move(layout.present_BM[:, m].nonzero()[:, 0]) for m in range(layout.num_modalities)]
        self.first_rows = [
            self._move(layout.seg_start_BM[layout.present_BM[:, m], m].long()) for m in range(layout.num_modalities)
        ]
        end_BM = layout.seg_start_BM.long() + layout.seg_len_BM.long()
        self.last_rows = [self._move(end_BM[layout.present_BM[:, m], m] - 1) for m in range(layout.num_modalities)]

    def content_rows(self, m: int, content_B: Tensor) -> Tensor:
        """int64 [N]: packed row of every content row of modality m. `content_B` (CPU): content rows of each product."""
        start_B = self.layout.seg_start_BM[:, m].long() + int(self._with_cls[m])
        offset_B = start_B - (content_B.cumsum(0) - content_B)
        return self._move(torch.arange(int(content_B.sum())) + offset_B.repeat_interleave(content_B))

    def _move(self, index: Tensor) -> Tensor:
        return index.to(self._device, non_blocking=True)


def summarize(x_TD: Tensor, layout: PackedLayout, index: RowIndex, kinds: tuple[str, ...]) -> list[Tensor]:
    """Per modality [n, D]: the summary of each product that has it, by `cls: learned | token | last | mean`; zeros
    for `none`.
    """
    return [_summary(x_TD, layout, index, m, kind) for m, kind in enumerate(kinds)]


def _summary(x_TD: Tensor, layout: PackedLayout, index: RowIndex, m: int, kind: str) -> Tensor:
    if kind in ("learned", "token"):
        return x_TD.index_select(0, index.first_rows[m])
    if kind == "last":
        return x_TD.index_select(0, index.last_rows[m])
    if kind == "none":
        return x_TD.new_zeros(index.products[m].shape[0], x_TD.shape[1])
    slab_ND = at_least_float32(x_TD.narrow(0, layout.slab[m], layout.slab[m + 1] - layout.slab[m]))
    length_B = layout.seg_len_BM[:, m].long()
    total_BD = torch.segment_reduce(slab_ND, "sum", lengths=length_B, axis=0, initial=0.0)
    mean_BD = total_BD / length_B.clamp(min=1)[:, None]
    return mean_BD.index_select(0, index.products[m]).to(x_TD.dtype)


def scatter_products(values: list[Tensor], index: RowIndex, num_products: int) -> Tensor:
    """[B, M, D] from per-modality [n, D]; zero where a product lacks the modality."""
    columns = [
        value_nD.new_zeros(num_products, value_nD.shape[1]).index_copy(0, index.products[m], value_nD)
        for m, value_nD in enumerate(values)
    ]
    return torch.stack(columns, dim=1)


class Projection(nn.Module):
    """A modality's unimodal summary in the contrastive space: norm, linear, unit L2 norm, fp32 out."""

    def __init__(self, dim: int, projection_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.projection = nn.Linear(dim, projection_dim, bias=False)

    def forward(self, summary_nD: Tensor) -> Tensor:
        return F.normalize(at_least_float32(self.projection(self.norm(summary_nD))), dim=-1)


def pool(states_BMD: Tensor, present_BM: Tensor, operation: str, normalized: bool) -> Tensor:
    """[B, W] fp32 from summaries and presence (bool, same device): W = M * D for `concat`, else D.

    A product without any modality gets the zero vector, normalised or not.
    """
    shown_BMD = states_BMD.float() * present_BM[:, :, None]
    if operation == "concat":
        vector_BW = shown_BMD.flatten(1)
    else:
        vector_BW = shown_BMD.sum(1)
        if operation == "mean":
            vector_BW = vector_BW / present_BM.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(vector_BW, dim=1) if normalized else vector_BW
