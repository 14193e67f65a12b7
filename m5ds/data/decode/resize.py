"""Cutting a box out of a picture and resizing it to a square: one implementation for every decoder and device.

torch's antialiased bilinear kernel for channels-last bytes is 4 to 10 times as fast on a CPU as DALI's resize
(docs/decoding.md), and works on each picture by itself, so that batch mates cannot change a bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from m5ds.data.decode.media import Box


def cut_and_resize(pictures: Sequence[Tensor], boxes: Sequence[Box], size: int, device: torch.device) -> list[Tensor]:
    """The box of every uint8 [H, W, 3] picture as [size, size, 3] in 0..255: uint8 on a CPU, float32 on a GPU."""
    resized = []
    for picture, box in zip(pictures, boxes, strict=True):
        cut_HWC = picture[box.top : box.bottom, box.left : box.right].to(device)
        if device.type != "cpu":
            cut_HWC = cut_HWC.float()  # CUDA has no byte kernel
        cut_13HW = cut_HWC.permute(2, 0, 1)[None]
        square_13SS = functional.interpolate(cut_13HW, size=(size, size), mode="bilinear", antialias=True)
        resized.append(square_13SS[0].permute(1, 2, 0).contiguous())
    return resized
