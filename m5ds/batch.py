"""One micro-batch: rows of the products that have each modality, and who has what. No padding anywhere.

Shape letters: B products, M modalities, N content rows of one modality in the batch, F features per row.
"""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True)
class ModalityRows:
    """All content rows of one modality in product order. Exactly one of `values_NF` and `token_N` is set."""

    length_B: Tensor
    """int64 on the CPU: content rows of each product ([CLS] rows that the model adds are not counted); 0 = absent."""
    position_N: Tensor
    """int64: index into the position table."""
    unit_N: Tensor
    """int64: masking unit inside the product; rows with the same unit are masked together. -1 = never masked."""
    part_N: Tensor
    """int64: 0 for most rows; in tables 0 = key row, 1 = value row."""
    values_NF: Tensor | None = None
    """float32: pixels, log-mel or precomputed features, standardised as the input spec says."""
    token_N: Tensor | None = None
    """int64: token ids."""
    geometry_N5: Tensor | None = None
    """float32: box x1, y1, x2, y2 and area, each divided by the image's size; only for region features."""

    @property
    def num_rows(self) -> int:
        return self.position_N.shape[0]


@dataclass(kw_only=True)
class Batch:
    """A micro-batch of B products. `modalities` keeps the model's modalities in table order."""

    ids: list[str]
    """Products' ids; "" marks an empty product that only pads the last global batch of an evaluation."""
    product_B: Tensor
    """int64: stable hash of each id (kernels.philox.product_hash)."""
    draw_B: Tensor
    """int64: the epoch or mixture draw; philox.EVALUATION_DRAW in evaluation."""
    label_B: Tensor
    """int64: index into the manifest's category list, -1 where unknown."""
    group_B: Tensor | None = None
    """int64 on the CPU: stable hash of the catalogue's group (variants of one product); None: each is alone in its."""
    present_BM: Tensor
    """bool on the CPU: True = present. Equals `length_B > 0` of each modality."""
    modalities: dict[str, ModalityRows] = field(default_factory=dict)

    @property
    def num_products(self) -> int:
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """Content rows over all modalities."""
        return sum(rows.num_rows for rows in self.modalities.values())

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its row tensors on `device`; lengths, presence, ids, hashes and labels stay on the CPU."""
        # A copy to the CPU that does not wait may be read before it is there.
        overlaps = torch.device(device).type != "cpu"

        def move(rows: ModalityRows) -> ModalityRows:
            moved = {
                f.name: value.to(device, non_blocking=overlaps)
                for f in dataclasses.fields(rows)
                if f.name != "length_B" and isinstance(value := getattr(rows, f.name), Tensor)
            }
            return dataclasses.replace(rows, **moved)

        return dataclasses.replace(self, modalities={name: move(rows) for name, rows in self.modalities.items()})
