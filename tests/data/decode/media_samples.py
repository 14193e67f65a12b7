"""Small encoded files made with real codecs, and ways to damage them."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from m5ds.inputs.media import MediaItem

IMAGE_KINDS = (
    "JPEG",
    "JPEG progressive",
    "PNG",
    "PNG alpha",
    "PNG palette",
    "WEBP",
    "WEBP lossless",
    "BMP",
    "GIF",
    "TIFF",
)
VIDEO_KINDS = (
    ("libvpx-vp9", "webm", "yuv420p"),
    ("libvpx", "webm", "yuv420p"),
    ("mjpeg", "avi", "yuvj420p"),
    ("libx264", "mp4", "yuv420p"),
    ("mpeg4", "avi", "yuv420p"),
)
AUDIO_KINDS = (
    ("pcm_s16le", "wav"),
    ("flac", "flac"),
    ("libopus", "ogg"),
    ("libmp3lame", "mp3"),
    ("aac", "mp4"),
)


def item(data: bytes, name: str = "sample") -> MediaItem:
    return MediaItem("product", name, data)


def picture_HWC(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """uint8: a slope in every direction plus blocks, so that crops, flips and turns all show."""
    rng = np.random.default_rng(seed)
    slope_HW = np.add.outer(np.linspace(0, 90, height), np.linspace(0, 120, width))
    blocks_HWC = np.kron(rng.integers(0, 45, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1)))
    return (slope_HW[..., None] + blocks_HWC[:height, :width]).astype(np.uint8)


def image(kind: str = "JPEG", pixels_HWC: np.ndarray | None = None, **options: object) -> bytes:
    picture = Image.fromarray(picture_HWC() if pixels_HWC is None else pixels_HWC)
    name, _, flavour = kind.partition(" ")
    if flavour == "alpha":
        picture.putalpha(128)
    elif flavour == "palette":
        picture = picture.quantize(256)
    elif flavour:
        options = {flavour: True, **options}
    file = io.BytesIO()
    picture.save(file, name, **options)
    return file.getvalue()


def video(
    codec: str = "libvpx-vp9",
    container: str = "webm",
    pixel_format: str = "yuv420p",
    *,
    times_ms: list[int] | None = None,
    height: int = 48,
    width: int = 64,
    level_step: int = 12,
    turn: int = 0,
    group: int = 8,
) -> bytes:
    """Grey frames, frame i of level (i * level_step) % 256, with a white bar on the left, shown at `times_ms`."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        stream.codec_context.gop_size = group
        stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        for number, time in enumerate(range(0, 480, 40) if times_ms is None else times_ms):
            pixels = np.full((height, width, 3), number * level_step % 256, np.uint8)
            pixels[:, : width // 8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def audio(
    codec: str = "pcm_s16le",
    container: str = "wav",
    *,
    seconds: float = 0.5,
    rate: int = 24000,
    hertz: float = 440.0,
    amplitude: float = 0.3,
    channels: int = 1,
) -> bytes:
    """A tone, encoded."""
    file = io.BytesIO()
    layout = "mono" if channels == 1 else "stereo"
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        wave = amplitude * np.sin(np.arange(int(seconds * rate)) * (2 * np.pi * hertz / rate))
        frame = av.AudioFrame.from_ndarray(np.repeat(wave[None], channels, 0).astype(np.float32), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, or a few bits flipped anywhere, or in the first 400 bytes."""
    kind = rng.integers(3)
    if kind == 0:
        return data[: rng.integers(0, len(data))]
    changed = bytearray(data)
    end = len(data) if kind == 1 else min(len(data), 400)
    for _ in range(rng.integers(1, 6)):
        changed[rng.integers(end)] ^= 1 << int(rng.integers(8))
    return bytes(changed)
