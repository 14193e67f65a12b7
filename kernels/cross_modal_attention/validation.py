"""What a caller of cross_modal_attention can get wrong, each as a `ValueError` that names the argument."""

import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.layout_validation import validate_layout
from m5ds.kernels.common.tiles import HEAD_DIMS
from m5ds.kernels.cross_modal_attention.dropout import Dropout

_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def validate(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: Dropout, *, triton: bool) -> None:
    """Check shapes, dtypes, devices and the layout."""
    if q.dim() != 3:
        raise ValueError(f"q_THD must be [rows, heads, head dim], got shape {tuple(q.shape)}")
    if not q.dtype.is_floating_point:
        raise ValueError(f"q_THD must be floating point, got {q.dtype}")
    for name, x in (("k_THD", k), ("v_THD", v)):
        if x.shape != q.shape:
            raise ValueError(f"{name} must have q_THD's shape {tuple(q.shape)}, got {tuple(x.shape)}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} must have q_THD's dtype {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q_THD's device {q.device}, got {x.device}")
    if layout.device != q.device:
        raise ValueError(f"layout must be on q_THD's device {q.device}, got {layout.device}: use layout.to(device)")
    if layout.num_rows != q.shape[0]:
        raise ValueError(f"layout describes {layout.num_rows} rows, q_THD has {q.shape[0]}")
    validate_layout(layout)
    dropout.validate(layout, q.shape[1])
    if triton and q.shape[2] not in HEAD_DIMS:
        raise ValueError(f"q_THD's head dim must be one of {HEAD_DIMS} for Triton, got {q.shape[2]}")
    if triton and q.dtype not in _TRITON_DTYPES:
        raise ValueError(f"q_THD must be bfloat16, float16 or float32 for Triton, got {q.dtype}")
