"""Clips cut into tubes: a few frames of a square patch. Shape letters: K files, T frames, H x W pixels, N rows."""

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
class VideoTubes(InputKind):
    """`frames` RGB frames chosen by timestamp, size x size pixels, cut into tubes of tube_frames x patch x patch."""

    kind: Literal["video_tubes"] = "video_tubes"
    frames: int = 12
    size: int = 112
    patch: int = 16
    tube_frames: int = 2

    medium: ClassVar[str] = "video"
    mask_units: ClassVar[tuple[str, ...]] = ("row", "frame")
    standardized_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        divides(self.patch, self.size, "video size, patch")
        divides(self.tube_frames, self.frames, "video frames, tube_frames")

    @property
    def dim(self) -> int:
        return 3 * self.tube_frames * self.patch**2

    @property
    def max_rows(self) -> int:
        return (self.frames // self.tube_frames) * (self.size // self.patch) ** 2

    def rows_of_files(self, items: Sequence[MediaItem], decoder: MediaDecoder, draws: Draws) -> ReadFiles:
        decoded = decoder.videos(items, self, draws.crops(), draws.frame_times(self.frames).tolist())
        assert isinstance(decoded.values, Tensor)
        rows = dict(zip(decoded.kept, self.cut(decoded.values), strict=True))
        return ReadFiles(rows=rows, failures=decoded.failures)

    def cut(self, values_KT3HW: Tensor) -> list[ProductRows]:
        """Tubes in (time, y, x) order, features in (frame, channel, y, x). Position and unit: the tube's number."""
        num, side, patch = values_KT3HW.shape[0], self.size // self.patch, self.patch
        expected = (self.frames, 3, self.size, self.size)
        assert values_KT3HW.shape[1:] == expected, f"{tuple(values_KT3HW.shape)} for clips of {expected}"
        steps, frames = self.frames // self.tube_frames, self.tube_frames
        grid = values_KT3HW.reshape(num, steps, frames, 3, side, patch, side, patch).permute(0, 1, 4, 6, 2, 3, 5, 7)
        return [numbered(rows_NF) for rows_NF in grid.reshape(num, self.max_rows, self.dim)]

    def time_step(self, position_N: Tensor) -> Tensor:
        return position_N // (self.size // self.patch) ** 2
