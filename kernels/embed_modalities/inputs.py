"""What embed_modalities takes for one modality, checked against the layout before any path runs.

Shape letters: N content rows of the modality in the batch ([CLS] rows not counted), D width, V vocabulary, P positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.layout_validation import validate_layout
from m5ds.kernels.embed_modalities.masking import MaskSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbedInput:
    """One modality's rows and parameters. Exactly one of `projected_ND` and `token_N` (with `token_table_VD`) is set.

    A content row is LayerNorm(base + extra + position + modality + part), where base is the projection's row, the
    token's embedding, or what replaces it under the mask; a [CLS] row is LayerNorm(cls + modality).
    All floating tensors share one dtype (float64 only on the reference and torch paths) and one device.
    """

    modality: int
    """Number in the modality table: the Philox key, not the slab."""
    position_N: Tensor
    """int64: index into position_table_PD."""
    unit_N: Tensor
    """int64: masking unit inside the product; -1 = never masked."""
    part_N: Tensor
    """int64: 0, or 1 for value rows of tables."""
    position_table_PD: Tensor
    modality_D: Tensor
    norm_weight_D: Tensor
    norm_bias_D: Tensor
    projected_ND: Tensor | None = None
    """Continuous modalities: the projection's output."""
    token_N: Tensor | None = None
    """Discrete modalities: int64 token ids before masking."""
    token_table_VD: Tensor | None = None
    part_table_2D: Tensor | None = None
    """Key and value embedding of tables."""
    extra_ND: Tensor | None = None
    """Added to content rows, masked ones too (projected box geometry)."""
    mask_D: Tensor | None = None
    """Continuous: stands for a masked row's projection. Required with `mask`."""
    cls_D: Tensor | None = None
    """A learned [CLS] row, row 0 of every segment that has rows."""
    mask: MaskSpec | None = None
    """None: nothing is masked."""

    @property
    def num_rows(self) -> int:
        return self.position_N.shape[0]

    def floats(self) -> dict[str, Tensor]:
        """The floating tensors that are set, by field name: all that have gradients."""
        names = (
            "projected_ND",
            "token_table_VD",
            "position_table_PD",
            "modality_D",
            "part_table_2D",
            "extra_ND",
            "mask_D",
            "cls_D",
            "norm_weight_D",
            "norm_bias_D",
        )
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def check(inputs: list[EmbedInput], layout: PackedLayout) -> None:
    """`ValueError` naming the argument that disagrees with the others. Only tensors on the CPU are read."""
    if len(inputs) != layout.num_modalities:
        raise ValueError(f"inputs has {len(inputs)} modalities, layout has {layout.num_modalities}")
    if not inputs:
        raise ValueError("inputs must hold at least one modality")
    validate_layout(layout)
    width, dtype = inputs[0].modality_D.shape[-1], inputs[0].modality_D.dtype
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"inputs[0].modality_D must be floating point, got {dtype}")
    for number, item in enumerate(inputs):
        _check_one(item, f"inputs[{number}]", width, dtype, layout.device)
        lengths = [row[number] for row in layout.lengths]
        num_cls = sum(length > 0 for length in lengths) if item.cls_D is not None else 0
        if item.num_rows != sum(lengths) - num_cls:
            raise ValueError(
                f"inputs[{number}].position_N has {item.num_rows} rows; layout has {sum(lengths)},"
                f" {num_cls} of them [CLS] rows"
            )


def _check_one(item: EmbedInput, name: str, width: int, dtype: torch.dtype, device: torch.device) -> None:
    if (item.projected_ND is None) == (item.token_N is None):
        raise ValueError(f"{name}: set exactly one of projected_ND and token_N")
    if (item.token_N is None) != (item.token_table_VD is None):
        raise ValueError(f"{name}: token_N and token_table_VD go together")
    if item.token_N is not None and item.mask_D is not None:
        raise ValueError(f"{name}.mask_D is for continuous rows; tokens are replaced by mask.mask_token")
    if item.projected_ND is not None and item.mask is not None and item.mask_D is None:
        raise ValueError(f"{name}.mask_D is missing; masked rows of a continuous modality need it")
    if item.mask is not None and item.mask.text and item.token_N is None:
        raise ValueError(f"{name}.mask.text replaces tokens, but token_N is not set")
    for field in ("position_N", "unit_N", "part_N", "token_N"):
        value = getattr(item, field)
        if value is None:
            continue
        if value.dtype != torch.int64 or value.shape != (item.num_rows,):
            raise ValueError(f"{name}.{field} must be int64 [{item.num_rows}], got {value.dtype} {list(value.shape)}")
        if value.device != device:
            raise ValueError(f"{name}.{field} is on {value.device}, layout on {device}")
    rows = {"projected_ND": item.num_rows, "extra_ND": item.num_rows, "part_table_2D": 2}
    for field, value in item.floats().items():
        dims = 1 if field.endswith("_D") else 2
        if value.dim() != dims or value.shape[-1] != width or (field in rows and value.shape[0] != rows[field]):
            raise ValueError(
                f"{name}.{field} has shape {list(value.shape)}; width is {width} and content rows {item.num_rows}"
                " (an empty weight means it was sharded: call the op inside its owner's forward)"
            )
        if value.dtype != dtype:
            raise ValueError(f"{name}.{field} is {value.dtype}, inputs[0].modality_D is {dtype}")
        if value.device != device:
            raise ValueError(f"{name}.{field} is on {value.device}, layout on {device}")
    for field, table in (("position_N", item.position_table_PD), ("token_N", item.token_table_VD)):
        index_N = getattr(item, field)
        if index_N is None or table is None or index_N.numel() == 0 or device.type != "cpu":
            continue
        lowest, highest = (int(value) for value in torch.aminmax(index_N))
        if lowest < 0 or highest >= len(table):
            raise ValueError(f"{name}.{field} holds {lowest} to {highest}, its table has {len(table)} entries")
