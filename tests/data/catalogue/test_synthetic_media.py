"""Synthetic media, pixel by pixel and sample by sample, against what a look means in plain Python.

The quickstart's figures (docs/results.md) were measured on these media: their colours, sizes and pitches must stay.
"""

import io
import itertools
import math
import wave

import av
import numpy as np
import pytest
from PIL import Image

from m5ds.data.catalogue import synthetic_media as media
from m5ds.data.catalogue.synthetic_media import Look

COLOURS = [
    *[(225, 30, 35), (245, 135, 15), (240, 225, 30), (35, 175, 45)],
    *[(20, 190, 215), (25, 55, 220), (150, 45, 205), (245, 90, 190)],
]
GROUNDS = [(250, 250, 250), (20, 20, 25), (125, 125, 130), (120, 70, 30), (180, 225, 180), (15, 40, 90)]
RADIUS = [0.18, 0.24, 0.31, 0.38]
TOWARDS = [(1, 0), (0, 1), (-1, 0), (0, -1)]
"""Right, down, left, up."""
SHAPES = [
    lambda x, y: math.hypot(x, y) < 1,  # a plate
    lambda x, y: abs(x) < 0.85 and abs(y) < 0.85,  # a cushion
    lambda x, y: 2 * abs(x) - 1.1 < y < 0.8,  # a tent
    lambda x, y: (abs(x) < 0.33 and abs(y) < 1.1) or (abs(y) < 0.33 and abs(x) < 1.1),  # a wrench
    lambda x, y: 0.36 < x * x + y * y < 1.1,  # a bracelet
    lambda x, y: abs(x) < 1.25 and abs(y) < 0.42,  # a shelf
]
LOOKS = [
    *(Look(shape, shape, shape, 0, 2, shape % 4) for shape in range(6)),
    *(Look(level, level, 0, level, level, level) for level in range(4)),
    *(Look(colour, 5, 1, 3, 3, 3) for colour in (6, 7)),
]


class Draws:
    """A generator whose every draw lies at the same share of its range."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low, high, size=None):
        value = low + self.share * (high - low)
        return value if size is None else np.full(size, value)

    def normal(self, mean, deviation, size):
        return np.full(size, mean + self.share * deviation)

    def random(self):
        return self.share


def expected_picture(look, height, width, shift, share, grain):
    """[H][W] RGB of the look, its item moved by `shift` along its direction."""
    short = min(height, width)
    jitter, light = 0.04 * share - 0.02, 0.93 + 0.14 * share
    reach = 0.1 + 0.18 * shift
    right, below = (short * (reach * step + jitter) for step in TOWARDS[look.direction])
    radius, period = short * RADIUS[look.size], max(4.0, short / 9)
    rows = []
    for row, column in itertools.product(range(height), range(width)):
        x, y = column - width / 2 - right, row - height / 2 - below
        across, down = (math.floor(at / period) % 2 == 0 for at in (x, y))
        striped = (False, down, across, across != down)[look.texture]
        if SHAPES[look.shape](x / radius, y / radius):
            pixel = [value * (0.55 if striped else 1.0) for value in COLOURS[look.colour]]
        else:
            pixel = [value + 12 * y / height for value in GROUNDS[look.ground]]
        rows.append([min(255, max(0, value * light + share * grain)) for value in pixel])
    return np.array(rows).reshape(height, width, 3)


def assert_same_picture(found, expected):
    """Within rounding to whole numbers, but for pixels that lie on an edge of the item or a stripe."""
    assert found.dtype == np.uint8 and found.shape == expected.shape
    wrong = (np.abs(found - expected).max(axis=2) > 1.001).sum()
    assert wrong <= 0.002 * expected.shape[0] * expected.shape[1], f"{wrong} pixels differ"


@pytest.mark.parametrize("look", LOOKS)
def test_a_picture_shows_its_look(look):
    for share, (height, width) in ((0.5, (40, 56)), (0.75, (54, 43))):
        found = media.picture_HWC(look, height, width, Draws(share))
        assert_same_picture(found, expected_picture(look, height, width, 0, share, grain=4))


@pytest.mark.parametrize("look", [Look(0, 1, 0, 1, 1, direction) for direction in range(4)])
def test_a_clip_moves_its_item_along_its_direction(look):
    frames = media.clip_THWC(look, 48, 5, Draws(0.75))
    assert frames.shape == (5, 48, 48, 3)
    for frame, shift in zip(frames, (-1, -0.5, 0, 0.5, 1), strict=True):
        assert_same_picture(frame, expected_picture(look, 48, 48, shift, 0.75, grain=3))


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("level", range(4))
def test_a_sound_is_a_chord_of_its_looks_tones(level, share):
    """Three tones: the colour's pulses with the direction, the ground's with the texture; the shape's size is loud."""
    look = Look(colour=2 * level, ground=level + 2, shape=level + 1, texture=3 - level, size=level, direction=level)
    pulses = (0, 3, 6, 12)

    def tone(hertz, pulses_per_second, t):
        detuned = hertz * (0.995 + 0.01 * share)
        loud = pulses_per_second == 0 or math.sin(2 * math.pi * (pulses_per_second * t + share)) > 0
        return math.sin(2 * math.pi * (detuned * t + share)) * (1 if loud else 0.06)

    found = media.sound_T(look, 0.25, Draws(share))
    assert found.shape == (4000,) and found.dtype == np.float32
    differences = []
    for sample in range(0, 4000, 7):
        t = sample / 16000
        expected = 0.30 * tone(200 * 1.16**look.colour, pulses[look.direction], t)
        expected += 0.22 * tone(900 * 1.18**look.ground, pulses[look.texture], t)
        expected += (0.02, 0.05, 0.11, 0.24)[look.size] * tone(2900 * 1.17**look.shape, 0, t)
        differences.append(abs(found[sample] - (expected + 0.004 * share) * (0.85 + 0.15 * share)))
    # A sample at the very edge of a pulse may fall on either side.
    assert sorted(differences)[-3] < 1e-5


def test_pictures_are_encoded_at_the_quality_asked_for():
    """A JPEG's first step of quantisation is 16 % of 200 - 2 * quality; 90 is the default."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    for data, step in ((media.encode_jpeg(pixels), 3), (media.encode_jpeg(pixels, 75), 8)):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size, image.quantization[0][0]) == ("JPEG", (24, 16), step)
    with Image.open(io.BytesIO(media.encode_png(pixels))) as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_clip_keeps_its_frames_size_and_rate(codec):
    frames = np.repeat(np.arange(8, dtype=np.uint8) * 30, 32 * 48 * 3).reshape(8, 32, 48, 3)
    for options, rate in (({}, 8), ({"frames_per_second": 4}, 4)):
        with av.open(io.BytesIO(media.encode_clip(frames, codec, **options))) as clip:
            stream = clip.streams.video[0]
            assert (stream.height, stream.width, stream.average_rate) == (32, 48, rate)
            decoded = list(clip.decode(stream))
        assert [frame.time for frame in decoded] == pytest.approx([number / rate for number in range(8)], abs=0.002)
        for number, frame in enumerate(decoded):
            assert frame.to_ndarray(format="rgb24").mean() == pytest.approx(30 * number, abs=6)


def test_a_wav_holds_16_bits_a_sample_and_is_cut_at_full_scale():
    with wave.open(io.BytesIO(media.encode_wav(np.array([0, 0.5, 1, 2, -1, -2], np.float32)))) as sound:
        assert sound.getparams()[:4] == (1, 2, 16000, 6)
        assert np.frombuffer(sound.readframes(6), "<i2").tolist() == [0, 16383, 32767, 32767, -32767, -32767]


def test_an_ogg_keeps_pitch_and_length():
    sound = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    with av.open(io.BytesIO(media.encode_ogg(sound))) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.layout.name) == ("opus", "mono")
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
        rate = stream.rate
    assert len(heard) / rate == pytest.approx(1, abs=0.003), "the last packet counts too"
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.fft.rfftfreq(len(heard), 1 / rate)[spectrum.argmax()] == pytest.approx(440, abs=3)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.1)
