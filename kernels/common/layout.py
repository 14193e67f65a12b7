"""Where each product's rows lie in the packed activations x_TD (DESIGN.md section 3.2).

Rows are modality-major: all image rows of the batch, then all text rows, and so on. A segment is (product b, modality
m); inside a slab segments follow product order. There is no padding. Shape letters: B products, M modalities, T packed
rows.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Segments of a packed buffer. Built by `PackedLayout.build`, moved with `.to(device)`.

    `seg_len_BM` governs attention (rows exist), `present_BM` governs losses (the product has the modality). A policy
    may add rows for an absent modality, so `seg_len > 0` does not imply `present`; `present` implies `seg_len > 0`.
    """

    seg_start_BM: Tensor
    """int32: first row of the segment, in [slab[m], slab[m + 1]]."""
    seg_len_BM: Tensor
    """int32: rows of the segment, 0 where there are none."""
    present_BM: Tensor
    """bool: True = the product has the modality."""
    product_B: Tensor
    """int64: stable hash of each product's id, the key of its random numbers."""
    draw_B: Tensor
    """int64: the epoch or mixture draw of each product, in [0, 2**32)."""
    slab: tuple[int, ...]
    """M + 1 row offsets on the host: modality m owns rows slab[m]:slab[m + 1]."""
    lengths: tuple[tuple[int, ...], ...]
    """Host copy of seg_len_BM, so that no path waits for the device to learn a length."""

    @classmethod
    def build(cls, seg_len_BM: Tensor, present_BM: Tensor, product_B: Tensor, draw_B: Tensor) -> "PackedLayout":
        """Lay out segments of the given lengths. All tensors on the CPU; `ValueError` where they are at odds."""
        if seg_len_BM.shape != present_BM.shape or seg_len_BM.dim() != 2:
            raise ValueError(
                f"seg_len {tuple(seg_len_BM.shape)} and present {tuple(present_BM.shape)} must both be [B, M]"
            )
        if bool((seg_len_BM < 0).any()):
            raise ValueError("seg_len must not be negative")
        if bool((present_BM & (seg_len_BM == 0)).any()):
            raise ValueError("present is True for a segment without rows")
        seg_len = seg_len_BM.to(torch.int64)
        rows_M = seg_len.sum(0)
        slab = (0, *rows_M.cumsum(0).tolist())
        start_BM = seg_len.cumsum(0) - seg_len + torch.tensor(slab[:-1], dtype=torch.int64)
        return cls(
            seg_start_BM=start_BM.to(torch.int32),
            seg_len_BM=seg_len.to(torch.int32),
            present_BM=present_BM.to(torch.bool),
            product_B=product_B.to(torch.int64),
            draw_B=draw_B.to(torch.int64),
            slab=slab,
            lengths=tuple(tuple(row) for row in seg_len.tolist()),
        )

    @property
    def num_products(self) -> int:
        return self.seg_len_BM.shape[0]

    @property
    def num_modalities(self) -> int:
        return self.seg_len_BM.shape[1]

    @property
    def num_rows(self) -> int:
        return self.slab[-1]

    @property
    def device(self) -> torch.device:
        return self.seg_len_BM.device

    @cached_property
    def max_seg_len(self) -> int:
        return max((length for row in self.lengths for length in row), default=0)

    @cached_property
    def row_product_T(self) -> Tensor:
        """int64: which product of the batch each row belongs to."""
        products = torch.arange(self.num_products, device=self.device).expand(self.num_modalities, -1)
        return products.reshape(-1).repeat_interleave(self.seg_len_BM.t().reshape(-1).long(), output_size=self.num_rows)

    @cached_property
    def row_modality_T(self) -> Tensor:
        """int64: which modality each row belongs to."""
        counts = torch.tensor(self.slab, device=self.device).diff()
        return torch.arange(self.num_modalities, device=self.device).repeat_interleave(
            counts, output_size=self.num_rows
        )

    @cached_property
    def row_position_T(self) -> Tensor:
        """int64: index of each row inside its segment."""
        start_T = self.seg_start_BM.long()[self.row_product_T, self.row_modality_T]
        return torch.arange(self.num_rows, device=self.device) - start_T

    def to(self, device: torch.device | str) -> "PackedLayout":
        """The same layout with its tensors on `device`."""
        # A copy to the CPU that does not wait may be read before it is there.
        overlaps = torch.device(device).type != "cpu"
        names = ("seg_start_BM", "seg_len_BM", "present_BM", "product_B", "draw_B")
        moved = {name: getattr(self, name).to(device, non_blocking=overlaps) for name in names}
        return PackedLayout(**moved, slab=self.slab, lengths=self.lengths)
