"""What one product's rows of a modality are: raw media cut into units, tokens, or precomputed features.

The data layer makes the rows, the model's embedder consumes them, and both read the sizes here. Every spec has `kind`,
`dim` (features per row, None for tokens) and `max_rows` (most content rows of a product, [CLS] not counted).
"""

from typing import ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True)
"""What every configuration dataclass is: an unknown key or an ill-typed value is an error."""


def _divides(part: int, whole: int, names: str) -> None:
    if part < 1 or whole < 1 or whole % part:
        raise ValueError(f"{names}: {whole} must be a positive multiple of {part}")


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImagePatches:
    """An RGB image, resized to size x size pixels and cut into square patches (ViT)."""

    kind: Literal["image_patches"] = "image_patches"
    size: int = 224
    patch: int = 16

    def __post_init__(self) -> None:
        _divides(self.patch, self.size, "image size, patch")

    @property
    def dim(self) -> int:
        return 3 * self.patch**2

    @property
    def max_rows(self) -> int:
        return (self.size // self.patch) ** 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VideoTubes:
    """`frames` RGB frames chosen by timestamp, size x size pixels, cut into tubes of tube_frames x patch x patch."""

    kind: Literal["video_tubes"] = "video_tubes"
    frames: int = 12
    size: int = 112
    patch: int = 16
    tube_frames: int = 2

    def __post_init__(self) -> None:
        _divides(self.patch, self.size, "video size, patch")
        _divides(self.tube_frames, self.frames, "video frames, tube_frames")

    @property
    def dim(self) -> int:
        return 3 * self.tube_frames * self.patch**2

    @property
    def max_rows(self) -> int:
        return (self.frames // self.tube_frames) * (self.size // self.patch) ** 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AudioPatches:
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

    def __post_init__(self) -> None:
        _divides(self.patch_mels, self.num_mels, "audio num_mels, patch_mels")
        _positive("audio hop", self.hop)
        _positive("audio patch_steps", self.patch_steps)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextTokens:
    """Token ids of title and description. The first row is the tokenizer's [CLS] token."""

    kind: Literal["text_tokens"] = "text_tokens"
    max_tokens: int = 36
    use_description: bool = True
    dim: ClassVar[None] = None

    def __post_init__(self) -> None:
        _positive("text max_tokens", self.max_tokens)

    @property
    def max_rows(self) -> int:
        return self.max_tokens


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TablePairs:
    """Token ids of the attributes, key then value, pair after pair. A pair that does not fit whole is left out."""

    kind: Literal["table_pairs"] = "table_pairs"
    max_tokens: int = 64
    max_tokens_per_pair: int = 24
    dim: ClassVar[None] = None

    def __post_init__(self) -> None:
        _positive("table max_tokens", self.max_tokens)
        _positive("table max_tokens_per_pair", self.max_tokens_per_pair)

    @property
    def max_rows(self) -> int:
        return self.max_tokens


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RegionFeatures:
    """Detector regions: `.npz` with `features` [N, dim], `boxes` [N, 4] in pixels, `size` (height, width)."""

    kind: Literal["region_features"] = "region_features"
    max_regions: int = 36
    dim: int = 2048

    def __post_init__(self) -> None:
        _positive("region max_regions", self.max_regions)
        _positive("region dim", self.dim)

    @property
    def max_rows(self) -> int:
        return self.max_regions


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeatureRows:
    """A `.npy` of [rows, dim] floats: 12 x 1024 clip vectors, 80 x 751 mel bins, or any other sequence."""

    kind: Literal["feature_rows"] = "feature_rows"
    rows: int = 12
    dim: int = 1024

    def __post_init__(self) -> None:
        _positive("feature rows", self.rows)
        _positive("feature dim", self.dim)

    @property
    def max_rows(self) -> int:
        return self.rows


InputSpec = ImagePatches | VideoTubes | AudioPatches | TextTokens | TablePairs | RegionFeatures | FeatureRows
