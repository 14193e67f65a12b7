"""Pictures cut into square patches (ViT). Shape letters: K files, H x W pixels, N rows, F features a row."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from m5ds.inputs.base import STRICT, InputKind, MediaDecoder, ReadFiles, divides
from m5ds.inputs.keyed import Draws
from m5ds.inputs.media import MediaItem
from m5ds.inputs.registry import register
from m5ds.inputs.rows import ProductRows, numbered


@register
@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImagePatches(InputKind):
    """An RGB image, resized to size x size pixels and cut into square patches (ViT)."""

    kind: Literal["image_patches"] = "image_patches"
    size: int = 224
    patch: int = 16

    medium: ClassVar[str] = "image"
    standardized_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        divides(self.patch, self.size, "image size, patch")

    @property
    def dim(self) -> int:
        return 3 * self.patch**2

    @property
    def max_rows(self) -> int:
        return (self.size // self.patch) ** 2

    def rows_of_files(self, items: Sequence[MediaItem], decoder: MediaDecoder, draws: Draws) -> ReadFiles:
        decoded = decoder.images(items, self, draws.crops())
        assert isinstance(decoded.values, Tensor)
        rows = dict(zip(decoded.kept, self.cut(decoded.values), strict=True))
        return ReadFiles(rows=rows, failures=decoded.failures)

    def cut(self, values_K3HW: Tensor) -> list[ProductRows]:
        """Patches in row-major order, features in (channel, y, x) order. Position and unit: the patch's number."""
        num, side, patch = values_K3HW.shape[0], self.size // self.patch, self.patch
        expected = (3, self.size, self.size)
        assert values_K3HW.shape[1:] == expected, f"{tuple(values_K3HW.shape)} for image size {self.size}"
        grid = values_K3HW.reshape(num, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        return [numbered(rows_NF) for rows_NF in grid.reshape(num, self.max_rows, self.dim)]
