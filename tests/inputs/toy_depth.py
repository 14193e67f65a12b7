"""A toy plugin: depth maps in a format of their own, which this file decodes. All that a new modality needs.

A `.dpth` file is `DPTH`, height and width (two big-endian 16-bit numbers), then a 16-bit number of millimetres a pixel.
"""

import struct
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from m5ds import modality
from m5ds.inputs import STRICT, InputKind, register
from m5ds.inputs.base import MediaDecoder, ReadFiles, divides, read_each
from m5ds.inputs.keyed import Draws
from m5ds.inputs.media import MediaError, MediaItem
from m5ds.inputs.rows import ProductRows, numbered

modality.register(modality.Modality(name="depth", number=17, catalogue_field="depths", task="mdm", suffixes=(".dpth",)))


@register
@dataclass(frozen=True, kw_only=True, config=STRICT)
class DepthPatches(InputKind):
    """The middle size x size pixels of a depth map in metres, cut into square patches."""

    kind: Literal["depth_patches"] = "depth_patches"
    size: int = 8
    patch: int = 4

    medium: ClassVar[str] = "depth"
    mask_units: ClassVar[tuple[str, ...]] = ("row", "frame")
    standardized_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        divides(self.patch, self.size, "depth size, patch")

    @property
    def dim(self) -> int:
        return self.patch**2

    @property
    def max_rows(self) -> int:
        return (self.size // self.patch) ** 2

    def rows_of_files(self, items: Sequence[MediaItem], decoder: MediaDecoder, draws: Draws) -> ReadFiles:
        return read_each(items, self.parse)

    def parse(self, data: bytes) -> ProductRows:
        """Patches in row-major order. MediaError where the file is no depth map of at least size x size pixels."""
        if data[:4] != b"DPTH" or len(data) < 8:
            raise MediaError("no depth map")
        height, width = struct.unpack(">HH", data[4:8])
        if len(data) != 8 + 2 * height * width or min(height, width) < self.size:
            raise MediaError(f"depth map of {height} x {width} pixels in {len(data)} bytes")
        metres_HW = (
            torch.from_numpy(np.frombuffer(data, ">u2", offset=8).reshape(height, width).astype(np.float32)) / 1e3
        )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        side = self.size // self.patch
        grid = metres_HW[top : top + self.size, left : left + self.size].reshape(side, self.patch, side, self.patch)
        return numbered(grid.permute(0, 2, 1, 3).reshape(self.max_rows, self.dim))

    def time_step(self, position_N: torch.Tensor) -> torch.Tensor:
        """A row of patches stands in for a step of time."""
        return position_N // (self.size // self.patch)


def encode(millimetres_HW: np.ndarray) -> bytes:
    """The file's bytes."""
    return b"DPTH" + struct.pack(">HH", *millimetres_HW.shape) + millimetres_HW.astype(">u2").tobytes()
