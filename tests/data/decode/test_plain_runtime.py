"""Without DALI the same values come out, bit for bit."""

import io
import subprocess
import sys
import textwrap
import warnings

import av
import numpy as np
import pytest
import torch
from media_samples import audio, image, item, video
from PIL import Image

from m5ds.data.decode import plain_runtime
from m5ds.data.decode.dali_runtime import DaliRuntime
from m5ds.data.decode.decoder import Decoder
from m5ds.data.decode.plain_runtime import PlainRuntime, open_runtime
from m5ds.data.decode.resample import resample
from m5ds.inputs import AudioPatches, ImagePatches, VideoTubes
from m5ds.inputs.media import Crop

CPU = torch.device("cpu")
CROP = Crop(area=0.3, aspect=0.6, y=0.2, x=0.9, flip=True)


@pytest.fixture(scope="module")
def dali():
    pytest.importorskip("nvidia.dali")
    return DaliRuntime(CPU, 1)


@pytest.fixture(scope="module")
def decoders():
    """(with DALI, without)."""
    pytest.importorskip("nvidia.dali")
    with_dali, without = Decoder("cpu", 1), Decoder("cpu", 1)
    without._dali = PlainRuntime(CPU)
    return with_dali, without


def noise_HWC(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """uint8: strong colours that change every few pixels, so that every rounding and upsampling shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, channels), dtype=np.uint8)
    return np.kron(coarse, np.ones((3, 3, 1), np.uint8))[:height, :width]


def noisy_clip(codec: str, container: str, pixel_format: str, height: int, width: int, colorspace: int = 0) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        stream.codec_context.gop_size = 4
        if colorspace:
            stream.codec_context.colorspace = colorspace
        for number in range(11):
            frame = av.VideoFrame.from_ndarray(noise_HWC(height, width, number), format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    found = {}
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            for height, width in ((48, 64), (37, 53), (50, 31)):
                name = f"JPEG {subsampling} {progressive} {height}x{width}"
                options = {"subsampling": subsampling, "progressive": progressive, "quality": 60}
                found[name] = image("JPEG", noise_HWC(height, width), **options)
    found["JPEG grey"] = image("JPEG", noise_HWC(40, 30, channels=1)[..., 0])
    turned = Image.Exif()
    turned[0x0112] = 6
    found["JPEG turned"] = image("JPEG", noise_HWC(40, 30), exif=turned)
    rgba = noise_HWC(40, 30, channels=4)
    for kind in ("PNG", "WEBP lossless"):
        found[kind] = image(kind, noise_HWC(41, 30))
        found[f"{kind} with alpha"] = image(kind, rgba)
    found["PNG palette"] = image("PNG palette", noise_HWC(40, 30))
    found["WEBP"] = image("WEBP", noise_HWC(41, 31), quality=70)
    return found


@pytest.mark.parametrize("name", pictures())
@pytest.mark.parametrize("crop", [None, CROP], ids=["centre", "crop"])
def test_pictures_are_equal_bit_for_bit(decoders, name, crop):
    items = [item(pictures()[name])]
    expected, found = (decoder.images(items, ImagePatches(size=24, patch=8), [crop]) for decoder in decoders)
    assert expected.kept == found.kept == [0]
    assert torch.equal(expected.values, found.values)


@pytest.mark.parametrize("size", [(48, 64), (50, 66), (37, 53), (37, 54), (54, 37)], ids=str)
@pytest.mark.parametrize(
    ("codec", "container", "pixel_format", "colorspace"),
    [
        ("libvpx-vp9", "webm", "yuv420p", 0),
        ("libvpx-vp9", "mp4", "yuv420p", 1),
        ("libvpx", "webm", "yuv420p", 0),
        ("mjpeg", "avi", "yuvj420p", 0),
        ("mjpeg", "avi", "yuvj422p", 0),
        ("mjpeg", "avi", "yuvj444p", 0),
        ("libx264", "mp4", "yuv420p", 0),
    ],
)
def test_clips_are_equal_bit_for_bit(decoders, codec, container, pixel_format, colorspace, size):
    if codec == "libx264":
        size = tuple(side // 2 * 2 for side in size)
    items = [item(noisy_clip(codec, container, pixel_format, *size, colorspace=colorspace))]
    spec = VideoTubes(frames=6, size=16, patch=8)
    times = [[0.0, 0.1, 0.35, 0.35, 0.8, 0.99]]
    expected, found = (decoder.videos(items, spec, [CROP], times) for decoder in decoders)
    assert expected.kept == found.kept == [0]
    assert torch.equal(expected.values, found.values)


@pytest.mark.parametrize("numbers", [[0], [10], [3, 4], [9, 2, 2, 7], list(range(11))], ids=str)
def test_every_choice_of_frames_is_decoded(dali, numbers):
    data = noisy_clip("libvpx-vp9", "webm", "yuv420p", 48, 64)
    with dali.active():
        expected = dali.videos([data], [numbers])[0]
    found = PlainRuntime(CPU).videos([data], [numbers])[0]
    assert len(found) == len(expected) == len(numbers)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("seconds", [0.3, 2.5], ids=["short", "long"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("codec", "container"),
    [("pcm_s16le", "wav"), ("pcm_u8", "wav"), ("pcm_f32le", "wav"), ("flac", "flac"), ("libmp3lame", "mp3")],
)
def test_spectrograms_are_equal(decoders, codec, container, channels, rate, seconds):
    data = audio(codec, container, seconds=seconds, rate=rate, channels=channels, hertz=523.0)
    spec = AudioPatches(seconds=1.0, num_mels=16, patch_mels=8)
    expected, found = (decoder.audios([item(data)], spec, [0.4]) for decoder in decoders)
    assert expected.kept == found.kept == [0]
    # The values' own deviation is 1.
    torch.testing.assert_close(found.values[0], expected.values[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rates", [(24000, 16000), (44100, 16000), (11025, 16000), (8000, 48000), (16001, 16000)])
@pytest.mark.parametrize("length", [1, 5, 100, 3000])
def test_resampling_is_that_of_dali(dali, rates, length):
    wave_N = torch.from_numpy(np.random.default_rng(0).normal(size=length).astype(np.float32))
    with dali.active():
        expected = dali.resample([wave_N], [float(rates[0])], float(rates[1]))[0]
    found = torch.from_numpy(resample(wave_N.numpy(), *rates))
    assert torch.equal(found, expected)


def test_resampling_keeps_a_tone():
    """Without DALI too: a low tone at another rate is the same tone."""
    tone = np.sin(np.arange(4800) * 2 * np.pi * 440 / 48000).astype(np.float32)
    found = resample(tone, 48000, 16000)
    expected = np.sin(np.arange(1600) * 2 * np.pi * 440 / 16000)
    assert len(found) == 1600
    np.testing.assert_allclose(found[20:-20], expected[20:-20], atol=2e-3)


def test_a_wave_that_has_the_rate_is_left_alone():
    wave_N = torch.randn(50)
    assert PlainRuntime(CPU).resample([wave_N], [16000.0], 16000.0)[0] is wave_N


def test_damaged_files_are_recorded_and_the_others_decoded(decoders):
    _, without = decoders
    good = image("PNG", noise_HWC(20, 20))
    decoded = without.images([item(b"junk"), item(good)], ImagePatches(size=8, patch=4), [None, None])
    assert decoded.kept == [1] and len(decoded.failures) == 1
    clip = video()
    decoded = without.videos(
        [item(clip[:60]), item(clip)], VideoTubes(frames=2, size=8, patch=4), [None] * 2, [[0, 0.5]] * 2
    )
    assert decoded.kept == [1] and len(decoded.failures) == 1
    sound = audio()
    decoded = without.audios([item(sound[:20]), item(sound)], AudioPatches(seconds=0.6, num_mels=16), [0.5] * 2)
    assert decoded.kept == [1] and len(decoded.failures) == 1


def test_a_missing_dali_is_said_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    plain_runtime._say_once.cache_clear()
    with pytest.warns(UserWarning, match=r"DALI is not installed.*m5ds\[dali-cuda120\]"):
        assert isinstance(open_runtime(CPU, 1), PlainRuntime)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(open_runtime(CPU, 1), PlainRuntime)
    plain_runtime._say_once.cache_clear()


def test_an_installed_dali_is_used():
    pytest.importorskip("nvidia.dali")
    assert type(open_runtime(CPU, 1)) is DaliRuntime


def test_nothing_of_the_decoder_imports_dali_before_it_is_asked_to_decode():
    code = """
        import sys
        import m5ds.data.decode.decoder, m5ds.data.batches.micro_batch, m5ds.processor
        assert not [name for name in sys.modules if name.startswith("nvidia.dali")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
