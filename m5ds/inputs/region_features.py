"""Detector regions of a picture. Shape letters: R regions, D feature width."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from m5ds.inputs.base import STRICT, InputKind, MediaDecoder, RandomTokens, ReadFiles, positive, read_each
from m5ds.inputs.feature_files import finite, read_npz
from m5ds.inputs.keyed import Draws
from m5ds.inputs.media import MediaError, MediaItem
from m5ds.inputs.registry import register
from m5ds.inputs.rows import ProductRows, numbered


@register
@dataclass(frozen=True, kw_only=True, config=STRICT)
class RegionFeatures(InputKind):
    """Detector regions: `.npz` with `features` [N, dim], `boxes` [N, 4] in pixels, `size` (height, width)."""

    kind: Literal["region_features"] = "region_features"
    max_regions: int = 36
    dim: int = 2048

    has_geometry: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("region max_regions", self.max_regions)
        positive("region dim", self.dim)

    @property
    def max_rows(self) -> int:
        return self.max_regions

    def rows_of_files(self, items: Sequence[MediaItem], decoder: MediaDecoder, draws: Draws) -> ReadFiles:
        return read_each(items, self.parse)

    def parse(self, data: bytes) -> ProductRows:
        """Rows of an `.npz` file: `features` [R, dim], `boxes` [R, 4] (x1, y1, x2, y2 in pixels), `size` (height,
        width).

        Regions past `max_regions` are cut (detectors write the most confident first). Geometry: x1, y1, x2, y2 and the
        area, as fractions of the picture. Raises MediaError where the file is no such archive.
        """
        arrays = read_npz(data, ("features", "boxes", "size"), "region file")
        features, boxes, size = arrays["features"], arrays["boxes"], arrays["size"]
        if features.ndim != 2 or features.shape[1] != self.dim or not len(features):
            raise MediaError(f"region file: features have shape {features.shape}, expected (regions, {self.dim})")
        if boxes.shape != (len(features), 4) or size.shape != (2,):
            raise MediaError(
                f"region file: boxes {boxes.shape} and size {size.shape}, expected ({len(features)}, 4) and (2,)"
            )
        box_R4 = finite(boxes[: self.max_regions], "region file: boxes")
        height, width = (float(side) for side in size)
        if not (math.isfinite(height) and math.isfinite(width) and height > 0 and width > 0):
            raise MediaError(f"region file: size ({height}, {width}) must be positive (height, width)")
        corners_R4 = box_R4 / torch.tensor([width, height, width, height])
        area_R = (corners_R4[:, 2] - corners_R4[:, 0]) * (corners_R4[:, 3] - corners_R4[:, 1])
        values_RD = finite(features[: self.max_regions], "region file: features")
        return numbered(values_RD, torch.cat([corners_R4, area_R[:, None]], dim=1))

    def random_rows(self, generator: torch.Generator, tokens: RandomTokens, full: bool) -> ProductRows:
        rows = super().random_rows(generator, tokens, full)
        rows.geometry_N5 = torch.rand(len(rows.position_N), 5, generator=generator)
        return rows
