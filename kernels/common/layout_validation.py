"""Whether a packed layout is one that kernels may run on. `PackedLayout.build` makes such; a hand-made one may differ.

Shape letters: B products, M modalities.
"""

import weakref

import torch

from m5ds.kernels.common.layout import PackedLayout

_checked: "weakref.WeakSet[PackedLayout]" = weakref.WeakSet()


def validate_layout(layout: PackedLayout) -> None:
    """`ValueError` where host lengths, slabs and tensors contradict each other: segments overlap or leave the buffer.

    A layout is checked once. Tensors on an accelerator are not read: that would wait for it.
    """
    if layout in _checked:
        return
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
    if layout.device.type == "cpu":
        _validate_tensors(layout)
    _checked.add(layout)


def _validate_tensors(layout: PackedLayout) -> None:
    num_products, num_modalities = layout.seg_len_BM.shape
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
