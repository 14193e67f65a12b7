"""Sounds as patches of a log-mel spectrogram (AST). Shape letters: K files, N rows."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor

from m5ds.inputs.base import STRICT, InputKind, MediaDecoder, ReadFiles, divides, positive
from m5ds.inputs.keyed import Draws
from m5ds.inputs.media import MediaItem
from m5ds.inputs.registry import register
from m5ds.inputs.rows import ProductRows, numbered


@register
@dataclass(frozen=True, kw_only=True, config=STRICT)
class AudioPatches(InputKind):
    """A log-mel spectrogram of `seconds` of mono sound, cut into patches of patch_mels x patch_steps.

    A shorter sound has fewer steps (the last patch is padded with silence), never rows of zeros.
    """

    kind: Literal["audio_patches"] = "audio_patches"
    sample_rate: int = 16000
    seconds: float = 12.0
    n_fft: int = 1024
    hop: int = 256
    num_mels: int = 80
    patch_mels: int = 16
    patch_steps: int = 16

    medium: ClassVar[str] = "audio"
    mask_units: ClassVar[tuple[str, ...]] = ("row", "frame")
    standardized_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        divides(self.patch_mels, self.num_mels, "audio num_mels, patch_mels")
        positive("audio hop", self.hop)
        positive("audio patch_steps", self.patch_steps)
        if self.max_steps < self.patch_steps:
            raise ValueError(f"audio seconds={self.seconds} is shorter than one patch of {self.patch_steps} steps")

    @property
    def max_steps(self) -> int:
        """Spectrogram steps of `seconds` of sound, rounded down to whole patches."""
        steps = int(self.seconds * self.sample_rate) // self.hop
        return steps // self.patch_steps * self.patch_steps

    @property
    def dim(self) -> int:
        return self.patch_mels * self.patch_steps

    @property
    def max_rows(self) -> int:
        return (self.max_steps // self.patch_steps) * (self.num_mels // self.patch_mels)

    def rows_of_files(self, items: Sequence[MediaItem], decoder: MediaDecoder, draws: Draws) -> ReadFiles:
        decoded = decoder.audios(items, self, draws.window_starts())
        rows = dict(zip(decoded.kept, self.cut(list(decoded.values)), strict=True))
        return ReadFiles(rows=rows, failures=decoded.failures)

    def cut(self, mels: Sequence[Tensor]) -> list[ProductRows]:
        """Patches in (time, frequency) order; a row's features are (mel bin, step). Position and unit: the patch's
        number. `mels`: one [num_mels, steps] tensor a product, `steps` a multiple of `patch_steps`.
        """
        products = []
        for mel in mels:
            num_mels, steps = mel.shape
            assert num_mels == self.num_mels and steps % self.patch_steps == 0, f"{tuple(mel.shape)} for {self}"
            grid = mel.reshape(num_mels // self.patch_mels, self.patch_mels, steps // self.patch_steps, -1)
            products.append(numbered(grid.permute(2, 0, 1, 3).reshape(-1, self.dim)))
        return products

    def time_step(self, position_N: Tensor) -> Tensor:
        return position_N // (self.num_mels // self.patch_mels)
