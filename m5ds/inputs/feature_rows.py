"""Precomputed features of any sequence. Shape letter: N rows."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from m5ds.inputs.base import STRICT, InputKind, MediaDecoder, ReadFiles, positive, read_each
from m5ds.inputs.feature_files import finite, read_npy
from m5ds.inputs.keyed import Draws
from m5ds.inputs.media import MediaError, MediaItem
from m5ds.inputs.registry import register
from m5ds.inputs.rows import ProductRows, numbered


@register
@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeatureRows(InputKind):
    """A `.npy` of [rows, dim] floats: 12 x 1024 clip vectors, 80 x 751 mel bins, or any other sequence."""

    kind: Literal["feature_rows"] = "feature_rows"
    rows: int = 12
    dim: int = 1024

    mask_units: ClassVar[tuple[str, ...]] = ("row", "frame")

    def __post_init__(self) -> None:
        positive("feature rows", self.rows)
        positive("feature dim", self.dim)

    @property
    def max_rows(self) -> int:
        return self.rows

    def rows_of_files(self, items: Sequence[MediaItem], decoder: MediaDecoder, draws: Draws) -> ReadFiles:
        return read_each(items, self.parse)

    def parse(self, data: bytes) -> ProductRows:
        """Rows of an `.npy` file [rows, dim] of finite numbers; rows past `self.rows` are cut.

        Raises MediaError where the file is no such array.
        """
        features = read_npy(data, "feature file")
        if features.ndim != 2 or features.shape[1] != self.dim or not len(features):
            raise MediaError(f"feature file has shape {features.shape}, expected (rows, {self.dim})")
        return numbered(finite(features[: self.rows], "feature file"))

    def time_step(self, position_N: Tensor) -> Tensor:
        return position_N
