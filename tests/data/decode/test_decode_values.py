"""Values and limits of the decoders against computations of another kind."""

import io

import av
import numpy as np
import pytest
import torch
from media_samples import audio, image, item, video
from PIL import Image

from m5ds.data.decode import image as decode_image
from m5ds.data.decode import media, packets, video_index
from m5ds.data.decode import video as decode_video
from m5ds.data.decode.audio import log_mel
from m5ds.data.decode.decoder import Decoder
from m5ds.data.decode.media import MAX_IMAGE_PIXELS, Box, crop_box
from m5ds.data.decode.probes.media import check_pixels, image_format, is_animated_png
from m5ds.data.decode.probes.streams import stream_format
from m5ds.data.decode.video_bitstream import shows_picture
from m5ds.data.decode.video_index import places_at, usual_length
from m5ds.inputs import AudioPatches, VideoTubes
from m5ds.inputs.media import Crop, MediaError

SPEC = AudioPatches(seconds=1.0, num_mels=32, n_fft=512, hop=160, sample_rate=16000)


def mel_by_numpy(wave_N: np.ndarray, spec: AudioPatches) -> np.ndarray:
    """The definition of docs/decoding.md, frame by frame, in float64."""
    wave_N = wave_N[: spec.max_steps * spec.hop]
    sounding = -(-len(wave_N) // spec.hop)
    steps = -(-sounding // spec.patch_steps) * spec.patch_steps
    padded = np.concatenate([np.zeros(spec.n_fft // 2), wave_N, np.zeros(steps * spec.hop + spec.n_fft)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.n_fft) / spec.n_fft)
    frames = np.stack([padded[n * spec.hop : n * spec.hop + spec.n_fft] * window for n in range(steps)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    hertz = np.fft.rfftfreq(spec.n_fft, 1 / spec.sample_rate)
    top = 2595 * np.log10(1 + spec.sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, spec.num_mels + 2) / 2595) - 1)
    filters = [np.interp(hertz, edges[n : n + 3], [0, 1, 0]) for n in range(spec.num_mels)]
    mel = np.log(np.stack(filters) @ power.T + 1e-6)
    heard = mel[:, :sounding]
    return (mel - heard.mean()) / (heard.std() + 1e-3)


@pytest.mark.parametrize("samples", [1, 160, 161, 4000, 15999, 20000])
def test_log_mel_is_its_definition(samples: int) -> None:
    wave_N = np.random.default_rng(samples).normal(0, 0.1, samples)
    expected = mel_by_numpy(wave_N, SPEC)
    made = log_mel(torch.from_numpy(wave_N).float(), SPEC)
    assert made.shape == expected.shape
    np.testing.assert_allclose(made.numpy(), expected, atol=5e-3)


def test_the_floors_of_log_mel_show_in_whispers() -> None:
    """Power near 1e-6, and a level so even that 1e-3 counts beside its deviation."""
    noise_N = np.random.default_rng(0).normal(0, 1, 4000)
    for wave_N in (noise_N * 2e-4, noise_N * 2e-6):
        made = log_mel(torch.from_numpy(wave_N).float(), SPEC).numpy()
        np.testing.assert_allclose(made, mel_by_numpy(wave_N, SPEC), atol=2e-4, rtol=1e-3)


def test_limits_are_those_of_the_documentation() -> None:
    assert MAX_IMAGE_PIXELS * 3 == 192 * 2**20, "bytes"
    assert media.MAX_VIDEO_PIXELS == 4096 * 4096 and media.MAX_DECODED_PIXELS == 2 * 1024**3
    assert media.MAX_PACKETS == 500_000 and media.MAX_WHOLE_SAMPLES * 4 == 64 * 2**20
    assert (media.MIN_SAMPLE_RATE, media.MAX_SAMPLE_RATE, media.MAX_CHANNELS) == (1000, 768_000, 32)
    assert decode_video._WHOLE_PIXELS * 3 == 48 * 2**20


def test_a_crop_is_drawn_from_its_uniforms() -> None:
    """Area from 0.35 to 1, aspect log-uniform from 3/4 to 4/3, then the place among those that there are."""
    assert crop_box(200, 400, Crop(0.0, 0.5, 0.0, 0.0)) == Box(0, 0, 167, 167)  # the root of 28,000
    assert crop_box(200, 400, Crop(0.0, 0.5, 0.999, 0.999)) == Box(33, 233, 200, 400)
    assert crop_box(200, 400, Crop(0.0, 0.0, 0.0, 0.0)) == Box(0, 0, 193, 145)
    assert crop_box(200, 400, Crop(0.0, 1.0, 0.5, 0.5)) == Box(28, 104, 28 + 145, 104 + 193)  # of 56 and 208 places
    assert crop_box(200, 400, Crop(1.0, 0.5, 0.5, 0.5)) == Box(0, 59, 200, 59 + 283)
    assert crop_box(1, 5, Crop(0.0, 1.0, 0.99, 0.99)) == Box(0, 3, 1, 5)
    assert crop_box(5, 1, Crop(0.0, 0.0, 0.99, 0.99)) == Box(3, 0, 5, 1)
    assert crop_box(1, 1, Crop(0.0, 0.0, 0.5, 0.5)) == Box(0, 0, 1, 1)
    assert crop_box(100, 100, Crop(0.0, 0.5, 0.0, 0.0), scale=(1e-9, 1.0)) == Box(0, 0, 1, 1)
    assert crop_box(5, 8, None) == Box(0, 1, 5, 6) and crop_box(8, 5, None) == Box(1, 0, 6, 5)


def test_wide_pictures_reach_from_black_to_what_is_white_in_them() -> None:
    """65535 where 16 bits are, 1 for floats, or the brightest pixel; nothing that is no number, nothing below 0."""
    shades = [([0, 32768, 65535, -5], 65535.0, [0, 128, 255, 0]), ([0, 65535, 131070], 65535.0, [0, 128, 255])]
    shades += [([0.0, 0.5, 1.0], 1.0, [0, 128, 255]), ([4.0, np.nan, np.inf, -np.inf, 2.0], 1.0, [255, 0, 0, 0, 128])]
    for values, white, expected in shades:
        made = decode_image._narrowed(np.array([values], np.float32), white)
        assert made.dtype == np.uint8 and made.shape == (1, len(values), 3)
        assert (made == np.array(expected)[None, :, None]).all()


@pytest.mark.parametrize(("mode", "white"), [("I", 65535), ("I;16", 65535), ("F", 1.0)])
def test_a_half_of_white_is_grey_in_every_wide_mode(mode: str, white: float) -> None:
    kind = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), white / 2).astype(kind)).save(file, "TIFF")
    assert Image.open(file).mode == mode and set(decode_image._by_pillow(file.getvalue()).flat) <= {127, 128}


def test_ffmpeg_is_kept_from_writing_to_the_terminal() -> None:
    av.logging.set_level(av.logging.WARNING)
    Decoder("cpu", 1)
    assert av.logging.get_level() is None


def test_pixels_are_allowed_up_to_the_limit() -> None:
    check_pixels(1, MAX_IMAGE_PIXELS)
    check_pixels(1, 1)
    check_pixels(3, 4, 12)
    for sides in ((1, MAX_IMAGE_PIXELS + 1), (0, 1), (1, 0), (-1, -1)):
        with pytest.raises(MediaError, match="the header claims"):
            check_pixels(*sides)
    with pytest.raises(MediaError, match="more than 11"):
        check_pixels(3, 4, 11)


def test_packets_are_allowed_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, sound = video(times_ms=list(range(0, 480, 40))), audio("libmp3lame", "mp3", seconds=0.5)
    decoder = Decoder("cpu", 1)
    count = 1
    monkeypatch.setattr(packets, "MAX_PACKETS", 12)
    assert len(video_index.video_index(clip, on_gpu=False).packets) == 12
    monkeypatch.setattr(packets, "MAX_PACKETS", 11)
    with pytest.raises(MediaError, match="more than 11 packets"):
        video_index.video_index(clip, on_gpu=False)
    while True:
        monkeypatch.setattr(packets, "MAX_PACKETS", count)
        if decoder.audios([item(sound)], SPEC, [0.0]).kept:
            break
        count += 1
    frames = -(-(12000 + 529 + 576) // 576)  # 24 kHz: 576 samples a frame, after the coder's delay
    assert abs(count - frames) <= 2


def test_places_are_the_last_picture_that_has_begun() -> None:
    starts = [10, 20, 50]
    assert places_at(starts, 60, [0.0, 0.19, 0.2, 0.79, 0.8, 0.999]) == [0, 0, 1, 1, 2, 2]
    assert usual_length([5]) == 1 and usual_length([0, 10, 20, 90]) == 10 and usual_length([3, 3]) == 1


def test_references_that_are_never_shown_are_no_pictures() -> None:
    assert shows_picture("vp8", b"\x10") and not shows_picture("vp8", b"\x00") and shows_picture("vp8", b"")
    assert shows_picture("h264", b"\0")
    # VP9: marker 10, profile 00, show existing 0, inter frame 1, shown?
    assert shows_picture("vp9", bytes([0b10000110])) and not shows_picture("vp9", bytes([0b10000100]))
    assert shows_picture("vp9", bytes([0b10001000]))
    # Profile 3 has one more bit ahead of the question.
    assert shows_picture("vp9", bytes([0b10110011, 0])) and not shows_picture("vp9", bytes([0b10110010, 0]))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypisom", "mov"),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"RIFF\0\0\0\0AVI ", "avi"),
        (b"RF64\0\0\0\0WAVE", "wav"),
        (b"OggS", "ogg"),
        (b"ID3\x03\0\0\0\0\0\x02xxfLaC", "flac"),
        (b"ID3\x03\0\0\0\0\x01\x00" + bytes(128) + b"MP+", "mpc"),
        (b"ID3\x03\0\0\0\0\0\x02xxjunk", "mp3"),
        (b"\xff\xf1\x50\x80\0\0", "aac"),
        (b"\xff\xfb\x90\0\0\0", "mp3"),
        (b"\x0b\x77\0\0\0\x40", "ac3"),
        (b"\x0b\x77\0\0\0\x80", "eac3"),
        (b"\x47" + (bytes(187) + b"\x47") * 2, "mpegts"),
        (bytes(4) + b"\x47" + (bytes(191) + b"\x47") * 2, "mpegts"),
        (b"\0\0\1\xb3\0\0\0\0\0\0", "mpegvideo"),
        (b"\0\0\0\1\x40\1\0\0\0\0\0\0", "hevc"),
        (b"\0\0\0\1\x09\x10\0\0\0\1\x67\x64\0\0", "h264"),
        (b"\0\0\1\0\0\0\1\x20\0\0\0", "m4v"),
        (b"junk" + (b"\xff\xfb\x90\0" + bytes(413)) * 3, "mp3"),
        (b"junk" + (b"\xff\xfb\x92\0" + bytes(414)) * 3, "mp3"),
        (b"junk" + (b"\xff\xf3\x40\0" + bytes(101)) * 3, None),
        (b"junk" + (b"\xff\xf3\x40\0" + bytes(100)) * 3, "mp3"),
        (b"junk" + (b"\xff\xfb\x90\0" + bytes(413)) * 2, None),
        (b"\0\0\0\1\x09\x10\0\0\0\0\0\0", None),
        (b"\xff\xd8\xff\xe0" + bytes(50), None),
        (b"\x47" + bytes(187) + b"\x47" + bytes(200), None),
    ],
)
def test_streams_are_told_by_their_first_bytes(start: bytes, name: str | None) -> None:
    if name is not None:
        assert stream_format(start) == name
        return
    with pytest.raises(MediaError, match="known format"):
        stream_format(start)


def test_pictures_are_told_by_their_first_bytes() -> None:
    for data, name in ((b"P6\n1", "PPM"), (b"\x0a\x05\x01\x08", "PCX"), (b"icns", "ICNS"), (b"\0\0\1\0", "ICO")):
        assert image_format(data) == name
    for data in (b"P7\n1", b"P6x1", b"\0\0\0\x18ftypheic", b""):
        with pytest.raises(MediaError):
            image_format(data)
    assert not is_animated_png(image("PNG")) and is_animated_png(image("PNG")[:33] + b"\0\0\0\x08acTL" + bytes(12))


def test_clips_above_the_limit_are_left_to_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups for DALI hold at most so many pixels: two clips of 2 frames fit into 4 frames' worth, not into less."""
    clips = {n: video_index.video_index(video(), on_gpu=False) for n in range(3)}
    for pixels, groups in ((4, [[0, 1], [2]]), (4 - 1e-9, [[0], [1], [2]]), (2, [[0], [1], [2]]), (1.9, [])):
        monkeypatch.setattr(decode_video, "_WHOLE_PIXELS", pixels * 48 * 64)
        assert list(decode_video._bounded(clips, 2)) == groups
    assert Decoder("cpu", 1).videos([item(video())], VideoTubes(frames=2, size=16, patch=8), [None], [[0, 0.5]]).kept
