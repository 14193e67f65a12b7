"""What the decoders refuse, which part of a picture they keep, and how they say what went wrong."""

import math
from dataclasses import dataclass

import av

from m5ds.inputs.media import Crop, MediaError

MAX_IMAGE_PIXELS = 64 * 2**20
"""A larger picture is an absence: 64 Mpx unpack to 192 MiB."""
MAX_VIDEO_PIXELS = 16 * 2**20
"""Largest frame of a clip (4096 x 4096); larger is an absence, since a codec holds up to 17 reference frames."""
MAX_DECODED_PIXELS = 2 * 2**30
"""Most pixels that are decoded to reach one clip's frames; past it every frame is taken at the key frame before it."""
MAX_PACKETS = 500_000
"""Most packets of a clip's or sound's stream (2.7 hours at 50 frames a second); more is an absence."""
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE, MAX_CHANNELS = 1_000, 768_000, 32
"""Sounds beyond these are damaged headers, not sounds."""
MAX_WHOLE_SAMPLES = 2**24
"""Samples times channels of a sound that DALI may decode whole (64 MiB); of a longer one PyAV decodes the window."""

CROP_SCALE = (0.35, 1.0)
"""Smallest and largest share of the picture's area that a random crop keeps."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width over height of a random crop, in pixels."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a picture in whole pixels: rows top:bottom, columns left:right."""

    top: int
    left: int
    bottom: int
    right: int


def crop_box(
    height: int,
    width: int,
    crop: Crop | None,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """The part of a height x width picture that is resized to a square.

    A crop's area is uniform in `scale` times the picture's area, its aspect log-uniform in `ratio`, its place uniform.
    A side longer than the picture's is cut to it. None: the largest centred square, which is what resizing the short
    side and cropping the centre keeps.
    """
    if crop is None:
        box_height = box_width = min(height, width)
        top, left = (height - box_height) // 2, (width - box_width) // 2
    else:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * crop.area)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * crop.aspect)
        box_width = min(max(round(math.sqrt(area * aspect)), 1), width)
        box_height = min(max(round(math.sqrt(area / aspect)), 1), height)
        top, left = int((height - box_height + 1) * crop.y), int((width - box_width + 1) * crop.x)
    return Box(top, left, top + box_height, left + box_width)


def reason_for(error: BaseException) -> str:
    """One short line for a person, from whatever a decoder raised; the same for the same file."""
    if isinstance(error, av.FFmpegError):
        return f"FFmpeg: {error.strerror}"
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, MediaError):
        return text
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
