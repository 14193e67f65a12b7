"""Pictures, clips and sounds that show a synthetic product's latent factors, encoded with real codecs.

Every medium shows the same factors (`Look`) in its own way, plus noise of its own, so that a model can match products
across modalities and cannot do so by copying pixels. Encoders run on one thread: the same look and seed give the same
bytes.

Shape letters: H height, W width, T frames or samples, C = 3 colours.
"""

import io
import wave
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from PIL import Image

COLOURS = (
    (225, 30, 35),
    (245, 135, 15),
    (240, 225, 30),
    (35, 175, 45),
    (20, 190, 215),
    (25, 55, 220),
    (150, 45, 205),
    (245, 90, 190),
)
"""RGB of the item itself."""
GROUNDS = ((250, 250, 250), (20, 20, 25), (125, 125, 130), (120, 70, 30), (180, 225, 180), (15, 40, 90))
"""RGB of what the item stands on: white, black, grey, brown, mint, navy."""
NUM_SHAPES, NUM_TEXTURES, NUM_SIZES, NUM_DIRECTIONS = 6, 4, 4, 4

SAMPLE_RATE = 16000
_COLOUR_HERTZ = tuple(200.0 * 1.16**step for step in range(len(COLOURS)))
_GROUND_HERTZ = tuple(900.0 * 1.18**step for step in range(len(GROUNDS)))
_SHAPE_HERTZ = tuple(2900.0 * 1.17**step for step in range(NUM_SHAPES))
"""Pitches of the three tones of a chord: each factor owns a band of the mel scale, a level is a mel bin or two."""
_PULSES_PER_SECOND = (0.0, 3.0, 6.0, 12.0)
"""Rhythm of the item's tone, by direction."""


@dataclass(frozen=True, slots=True)
class Look:
    """Levels of the latent factors that every modality shows."""

    colour: int
    ground: int
    shape: int
    texture: int
    size: int
    direction: int


def picture_HWC(look: Look, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 picture: the item stands off the centre towards its direction, under its own light and film grain."""
    drawn_HWC = _draw(look, height, width, 0.0, rng.uniform(-0.02, 0.02, 2))
    return _expose(drawn_HWC, light=rng.uniform(0.93, 1.07), grain=rng.normal(0.0, 4.0, (height, width, 1)))


def _draw(look: Look, height: int, width: int, shift: float, jitter: np.ndarray) -> np.ndarray:
    """float [H, W, C] pixels without noise; `shift` moves the item along its direction (-1 to 1)."""
    short = min(height, width)
    angle = look.direction * np.pi / 2
    reach = 0.10 + 0.18 * shift
    x_W = np.arange(width) - width / 2 - (np.cos(angle) * reach + jitter[0]) * short
    y_H = np.arange(height) - height / 2 - (np.sin(angle) * reach + jitter[1]) * short
    radius = short * (0.18, 0.24, 0.31, 0.38)[look.size]
    inside_HW = _inside(look.shape, x_W[None, :] / radius, y_H[:, None] / radius)
    stripe_HW = _texture(look.texture, x_W[None, :], y_H[:, None], period=max(4.0, short / 9))
    item_HWC = np.asarray(COLOURS[look.colour], np.float32) * (1 - 0.45 * stripe_HW[..., None])
    ground_HWC = np.asarray(GROUNDS[look.ground], np.float32) + (y_H[:, None, None] * (12.0 / height))
    return np.where(inside_HW[..., None], item_HWC, ground_HWC)


def _expose(pixels: np.ndarray, *, light: float, grain: np.ndarray) -> np.ndarray:
    return np.clip(pixels * light + grain, 0, 255).astype(np.uint8)


def _inside(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool [H, W]: where the item is, in units of its radius."""
    if shape == 0:
        return x * x + y * y < 1
    if shape == 1:
        return np.maximum(abs(x), abs(y)) < 0.85
    if shape == 2:
        return (y < 0.8) & (y > 2.0 * abs(x) - 1.1)
    if shape == 3:
        return (abs(x) < 0.33) & (abs(y) < 1.1) | (abs(y) < 0.33) & (abs(x) < 1.1)
    if shape == 4:
        ring = x * x + y * y
        return (ring < 1.1) & (ring > 0.36)
    return (abs(x) < 1.25) & (abs(y) < 0.42)


def _texture(texture: int, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """float [H, W], 0 or 1: plain, horizontal stripes, vertical stripes, checks."""
    across, down = (x // period % 2 == 0), (y // period % 2 == 0)
    blank = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    return blank + (np.False_, down, across, across ^ down)[texture]


def encode_jpeg(pixels_HWC: np.ndarray, quality: int = 90) -> bytes:
    return _encode_image(pixels_HWC, format="JPEG", quality=quality)


def encode_png(pixels_HWC: np.ndarray) -> bytes:
    return _encode_image(pixels_HWC, format="PNG", compress_level=3)


def _encode_image(pixels_HWC: np.ndarray, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format, **options)
    return buffer.getvalue()


def clip_THWC(look: Look, size: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 frames: the item travels along its direction from one side of the centre to the other."""
    light, jitter = rng.uniform(0.93, 1.07), rng.uniform(-0.02, 0.02, 2)
    grain_HWC = rng.normal(0.0, 3.0, (size, size, 1))
    shifts = np.linspace(-1.0, 1.0, num_frames)
    drawn = (_draw(look, size, size, float(shift), jitter) for shift in shifts)
    return np.stack([_expose(frame_HWC, light=light, grain=grain_HWC) for frame_HWC in drawn])


def encode_clip(frames_THWC: np.ndarray, codec: str, frames_per_second: int = 8) -> bytes:
    """A clip without sound: `h264` in MP4 or `vp9` in WebM. Height and width must be even."""
    encoder, container, options = {
        "h264": ("libx264", "mp4", {"preset": "ultrafast", "crf": "20", "threads": "1"}),
        "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "threads": "1"}),
    }[codec]
    buffer = io.BytesIO()
    # bitexact: the muxers would write a random segment id and the library's version otherwise.
    with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream(encoder, rate=frames_per_second, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, frames_per_second)
        for frame_HWC in frames_THWC:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def sound_T(look: Look, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """float32 mono sound at SAMPLE_RATE in [-1, 1]: a chord whose tones say colour, ground and shape.

    The rhythm of the colour's tone says the direction, that of the ground's tone the texture, and the strength of the
    shape's tone the size. Nothing depends on where a window of the sound starts, but for the phase.
    """
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    detune = rng.uniform(0.995, 1.005)

    def tone(hertz: float, pulses: float) -> np.ndarray:
        envelope = 1.0 if pulses == 0 else (np.sin(2 * np.pi * (pulses * t + rng.random())) > 0) * 0.94 + 0.06
        return np.sin(2 * np.pi * (hertz * detune * t + rng.random())) * envelope

    sound = 0.30 * tone(_COLOUR_HERTZ[look.colour], _PULSES_PER_SECOND[look.direction])
    sound += 0.22 * tone(_GROUND_HERTZ[look.ground], _PULSES_PER_SECOND[look.texture])
    sound += (0.02, 0.05, 0.11, 0.24)[look.size] * tone(_SHAPE_HERTZ[look.shape], 0.0)
    sound += rng.normal(0.0, 0.004, t.shape)
    return (sound * rng.uniform(0.85, 1.0)).astype(np.float32)


def encode_wav(sound: np.ndarray) -> bytes:
    """16-bit mono PCM."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(SAMPLE_RATE)
        output.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def encode_ogg(sound: np.ndarray) -> bytes:
    """Opus in OGG (FFmpeg's own Vorbis encoder loses most of a short sound, and the wheel has no other)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg", options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream("libopus", rate=SAMPLE_RATE, options={"b": "32000", "compression_level": "0"})
        stream.layout, stream.format = "mono", "flt"
        stream.codec_context.thread_count = 1
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None], np.float32), format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
