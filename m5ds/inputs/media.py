"""What goes into the decoders and what comes out: encoded files, crops, decoded values, recorded failures."""

from dataclasses import dataclass

from torch import Tensor


class MediaError(ValueError):
    """A file that cannot be used: damaged, of the wrong kind or shape. It becomes a `BadMedia`, never an end of the
    run.
    """


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One encoded file of one product."""

    product_id: str
    member: str
    """Name of the file inside the shard; for messages only, formats are told by content."""
    data: bytes


@dataclass(frozen=True, slots=True)
class BadMedia:
    """A file that became an absence, and why."""

    product_id: str
    member: str
    reason: str


@dataclass(slots=True)
class Decoded:
    """What became of K' files of which K could be decoded."""

    values: Tensor | list[Tensor]
    """[K, ...] float32 on the decoder's device; for sounds a list of K tensors of different lengths."""
    kept: list[int]
    """Ascending indices of the K items that were decoded."""
    failures: list[BadMedia]
    """One entry for each item that is not in `kept`."""


@dataclass(frozen=True, slots=True)
class Crop:
    """Uniforms in [0, 1) drawn by the caller; the decoder turns them into pixels once the picture's size is known."""

    area: float
    aspect: float
    y: float
    x: float
    flip: bool = False
