"""What a caller of cross_modal_attention can get wrong, each as a `ValueError` that names the argument."""

import weakref

import torch
from torch import Tensor

from m5ds.kernels.cross_modal_attention.dropout import Dropout
from m5ds.kernels.layout import PackedLayout
from m5ds.kernels.tiles import HEAD_DIMS

_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_checked: "weakref.WeakSet[PackedLayout]" = weakref.WeakSet()


def validate(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, dropout: Dropout, *, triton: bool) -> None:
    """Check shapes, dtypes, devices and the layout; a layout is checked once."""
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
    if layout not in _checked:
        validate_layout(layout)
        _checked.add(layout)
    dropout.validate(layout, q.shape[1])
    if triton and q.shape[2] not in HEAD_DIMS:
        raise ValueError(f"q_THD's head dim must be one of {HEAD_DIMS} for Triton, got {q.shape[2]}")
    if triton and q.dtype not in _TRITON_DTYPES:
        raise ValueError(f"q_THD must be bfloat16, float16 or float32 for Triton, got {q.dtype}")


def validate_layout(layout: PackedLayout) -> None:
    """`ValueError` where host lengths, slabs and tensors contradict each other: segments overlap or leave the buffer.

    Tensors on an accelerator are not read (that would wait for it): kernels take addresses from the host's lengths.
    """
    num_products, num_modalities = layout.seg_len_BM.shape
    if len(layout.lengths) != num_products or any(len(row) != num_modalities for row in layout.lengths):
        raise ValueError(f"layout.lengths must be {num_products} x {num_modalities}, as seg_len_BM is")
    if len(layout.slab) != num_modalities + 1 or layout.slab[0] != 0:
        raise ValueError(f"layout.slab must be {num_modalities + 1} offsets from 0, got {layout.slab}")
    if any(length < 0 for row in layout.lengths for length in row):
        raise ValueError("layout.lengths must not be negative")
    totals = [sum(row[m] for row in layout.lengths) for m in range(num_modalities)]
    for m, total in enumerate(totals):
        room = layout.slab[m + 1] - layout.slab[m]
        if total != room:
            raise ValueError(f"layout: segments of modality {m} hold {total} rows, its slab has {room}")
    if layout.device.type != "cpu":
        return
    length_BM = torch.tensor(layout.lengths, dtype=torch.int64).reshape(num_products, num_modalities)
    if not torch.equal(length_BM, layout.seg_len_BM.long()):
        raise ValueError("layout.seg_len_BM and layout.lengths disagree")
    start_BM = length_BM.cumsum(0) - length_BM + torch.tensor(layout.slab[:-1], dtype=torch.int64)
    wrong_BM = (start_BM != layout.seg_start_BM.long()) & (length_BM > 0)
    if bool(wrong_BM.any()):
        b, m = wrong_BM.nonzero()[0].tolist()
        raise ValueError(
            f"layout: the segment of product {b}, modality {m} starts at row {int(layout.seg_start_BM[b, m])}, "
            f"expected {int(start_BM[b, m])}: segments overlap, leave gaps or run past the buffer"
        )
