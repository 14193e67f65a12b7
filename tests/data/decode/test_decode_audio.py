"""Sample values, windows, groups and lengths of sounds, each against what is written down here."""

import io
import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from media_samples import item

from m5ds.data.decode import audio as decode_audio
from m5ds.data.decode.audio import (
    _bounded,
    _by_dali,
    _checked_rate,
    _heard_seconds,
    _padding,
    _runs,
    as_float,
    decode_audios,
)
from m5ds.data.decode.media import MAX_CHANNELS, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from m5ds.data.decode.plain_runtime import PlainRuntime
from m5ds.inputs import AudioPatches
from m5ds.inputs.media import MediaError

RATE = 8000
SPEC = AudioPatches(seconds=1.0, num_mels=16, patch_mels=8, sample_rate=RATE, hop=80, n_fft=256, patch_steps=10)
WINDOW = SPEC.max_steps * SPEC.hop


def wav(samples_NC: np.ndarray, rate: int = RATE, encoding: int = 1) -> bytes:
    channels, block = samples_NC.shape[1], samples_NC.shape[1] * samples_NC.itemsize
    form = struct.pack("<HHIIHH", encoding, channels, rate, rate * block, block, samples_NC.itemsize * 8)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", samples_NC.nbytes)
    return b"RIFF" + struct.pack("<I", len(body) + samples_NC.nbytes) + body + samples_NC.tobytes()


def in_matroska(samples_N: np.ndarray, rate: int = RATE, packet: int = 80) -> bytes:
    """The same int16 samples for PyAV, in packets of 80 (10 ms at 8000 a second: Matroska counts milliseconds)."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=rate, layout="mono")
        for start in range(0, len(samples_N), packet):
            frame = av.AudioFrame.from_ndarray(samples_N[None, start : start + packet], "s16", "mono")
            frame.sample_rate, frame.pts = rate, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


class Heard(PlainRuntime):
    """Keeps what is to be resampled last."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.waves: list[np.ndarray] = []
        self.rates: list[float] = []

    def resample(self, waves, rates, rate):
        self.waves, self.rates = [wave.numpy() for wave in waves], list(rates)
        return super().resample(waves, rates, rate)


def ramp(count: int) -> np.ndarray:
    return np.arange(count).astype(np.int16)


@pytest.mark.parametrize("make", [lambda samples: wav(samples[:, None]), in_matroska], ids=["whole", "by packets"])
@pytest.mark.parametrize("count", [WINDOW - 80, WINDOW, WINDOW + 320, 2 * WINDOW, 2 * WINDOW + 160, 3 * WINDOW])
def test_a_window_holds_the_samples_that_its_start_names(make, count: int) -> None:
    """The start is a share of what the sound is longer than its window."""
    runtime = Heard()
    data = make(ramp(count))
    for start in (0.0, 0.25, 0.5, 0.99):
        values, reasons = decode_audios(runtime, [item(data)], SPEC, [start])
        first = start * max(count - WINDOW, 0)
        expected = ramp(count)[round(first) :][:WINDOW]
        found = runtime.waves[0] * 32768
        assert not reasons and runtime.rates == [RATE] and len(found) == min(count, WINDOW)
        np.testing.assert_allclose(found, expected[: len(found)], atol=1)
        assert values[0].shape == (SPEC.num_mels, -(-min(count, WINDOW) // 800) * 10)


@pytest.mark.parametrize(("count", "first"), [(2 * WINDOW, 5600), (2 * WINDOW + 1000, 6301)])
def test_a_sound_of_two_windows_is_still_decoded_whole(count: int, first: int) -> None:
    """There a start between two samples is the earlier (5600.8), of longer sounds the nearer (6300.9)."""
    runtime = Heard()
    decode_audios(runtime, [item(in_matroska(ramp(count), packet=1000))], SPEC, [0.7001])
    assert round(float(runtime.waves[0][0]) * 32768) == first


def test_a_sound_without_a_decoder_is_an_absence() -> None:
    data = bytearray(wav(ramp(500)[:, None]))
    data[20:22] = b"\x34\x12"  # the encoding's number, which nobody has
    _, reasons = decode_audios(Heard(), [item(bytes(data))], SPEC, [0.0])
    assert reasons == {0: "no decoder for the sound stream"}


def test_windows_are_counted_at_the_sounds_own_rate() -> None:
    runtime = Heard()
    samples = ramp(30_000)
    for make in (lambda: wav(samples[:, None], 2 * RATE), lambda: in_matroska(samples, 2 * RATE)):
        values, _ = decode_audios(runtime, [item(make())], SPEC, [0.5])
        assert runtime.rates == [2 * RATE] and len(runtime.waves[0]) == 2 * WINDOW
        np.testing.assert_allclose(runtime.waves[0][0] * 32768, 15_000 - WINDOW, atol=1)
        assert values[0].shape == (SPEC.num_mels, SPEC.max_steps)


def test_floating_point_samples_are_made_finite() -> None:
    samples = np.array([0.5, np.nan, np.inf, -np.inf, 5e3, -5e3, 999.0, -999.0], np.float32)[:, None]
    runtime = Heard()
    values, _ = decode_audios(runtime, [item(wav(samples, encoding=3))], SPEC, [0.0])
    assert runtime.waves[0].tolist() == [0.5, 0.0, 1.0, -1.0, 1e3, -1e3, 999.0, -999.0]
    assert torch.isfinite(values[0]).all()


def test_bad_sounds_are_recorded_and_the_others_keep_their_places() -> None:
    good = item(wav(ramp(500)[:, None]))
    values, reasons = decode_audios(Heard(), [item(b"junk"), good, item(b""), good], SPEC, [0.0] * 4)
    assert sorted(values) == [1, 3] and sorted(reasons) == [0, 2] and "empty" in reasons[2]
    assert decode_audios(Heard(), [item(b"")], SPEC, [0.0])[0] == {}


def test_sounds_share_a_call_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = [item(wav(np.zeros((count, 2), np.int16))) for count in (50, 30, 20, 1, 99, 100)]
    sounds.insert(2, item(b"not for DALI"))
    monkeypatch.setattr(decode_audio, "MAX_WHOLE_SAMPLES", 200)
    assert list(_bounded(sounds)) == [[0, 1, 3], [4, 5], [6]]
    assert list(_bounded(sounds[2:3])) == [] and list(_bounded(sounds[6:])) == [[0]]


def test_one_bad_sound_of_a_call_is_left_out_and_asked_for_once_more_alone() -> None:
    asked: list[list[bytes]] = []

    class Fails:
        def audios(self, files):
            asked.append(list(files))
            if b"bad" in files:
                raise RuntimeError("damaged")
            return [(torch.zeros(len(data) - 1, 2), 8000.0) for data in files]

    kept = {}
    items = [item(data) for data in (b"good", b"bad", b"x", b"fine")]
    _by_dali(Fails(), items, [0, 1, 2, 3], lambda index, sound, rate: kept.update({index: (len(sound), rate)}))
    assert asked == [[b"good", b"bad", b"x", b"fine"], [b"good"], [b"bad"], [b"x"], [b"fine"]]
    assert kept == {0: (3, 8000.0), 3: (3, 8000.0)}, "an empty sound is not kept"
    asked.clear()
    _by_dali(Fails(), items, [1, 3], lambda index, sound, rate: None)
    _by_dali(Fails(), items, [1], lambda index, sound, rate: None)
    assert asked == [[b"bad", b"fine"], [b"bad"], [b"fine"], [b"bad"]]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "middle", "scale"),
    [
        ("u8", np.uint8, 128, 128),
        ("s16", np.int16, 0, 2**15),
        ("s32", np.int32, 0, 2**31),
        ("flt", np.float32, 0, 1),
        ("dbl", np.float64, 0, 1),
    ],
)
def test_samples_become_minus_one_to_one(name: str, kind: type, middle: int, scale: int, planar: bool) -> None:
    left, right = np.array([0.0, 0.5, -1.0]), np.array([-0.25, 0.75, 0.125])
    samples = (np.stack([left, right]) * scale + middle).astype(kind)
    given = samples if planar else samples.T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(given), name + "p" * planar, "stereo")
    found = as_float(frame)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [left, right], atol=1e-7)


def test_rates_and_channels_are_allowed_up_to_the_limits() -> None:
    def claim(rate: int, channels: int) -> int:
        return _checked_rate(SimpleNamespace(sample_rate=rate, layout=SimpleNamespace(channels=[0] * channels)))

    for rate, channels in ((MIN_SAMPLE_RATE, 1), (MAX_SAMPLE_RATE, MAX_CHANNELS)):
        assert claim(rate, channels) == rate
    for rate, channels in ((MIN_SAMPLE_RATE - 1, 1), (MAX_SAMPLE_RATE + 1, 1), (8000, 0), (8000, MAX_CHANNELS + 1)):
        with pytest.raises(MediaError, match="the sound claims"):
            claim(rate, channels)


def packet(duration: int | None, *, pts: int | None = 0, base: Fraction | None = Fraction(1, 100), hidden=False):
    return SimpleNamespace(duration=duration, time_base=base, is_discard=hidden, pts=pts)


def test_a_packet_sounds_as_long_as_it_says_unless_it_is_discarded() -> None:
    packets = [packet(duration) for duration in (50, 1, 0, None, -5, 2**31 - 1, 2**31)]
    packets += [packet(50, hidden=True), packet(50, base=None)]
    assert list(_heard_seconds(packets)) == [0.5, 0.01, 0.0, 0.0, 0.0, (2**31 - 1) / 100, 0.0, 0.0, 0.0]


def frame(samples: int, rate: int = 1000, pts: int | None = 0, level: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(
        samples=samples,
        sample_rate=rate,
        pts=pts,
        layout=SimpleNamespace(channels=["left", "right"]),
        format=SimpleNamespace(is_planar=True),
        to_ndarray=lambda: np.stack([np.full(samples, level), np.full(samples, level + 1)]).astype(np.float32),
    )


def test_what_lies_past_the_edit_list_is_padding() -> None:
    """The list ends at 0.9 s. By the packet 0.5 + 0.6 s are 200 samples too many; AAC goes by the frame, 0.7 + 0.3."""
    last, decoded = packet(60, pts=50), frame(300, pts=70)
    assert _padding("mp3", last, decoded, 90) == 200 and _padding("aac", last, decoded, 90) == 100
    assert _padding("aac", last, frame(300, pts=None), 90) == 200
    assert _padding("mp3", packet(None, pts=50), decoded, 90) == -400
    assert (
        _padding("mp3", packet(60, pts=None), decoded, 90) == _padding("mp3", packet(60, base=None), decoded, 90) == 0
    )


class Context:
    """Gives the frames listed for each packet, and the last ones at the end; an error where the packet is damaged."""

    def __init__(self, frames: dict, name: str = "mp3") -> None:
        self._frames, self.name = frames, name

    def decode(self, given):
        found = self._frames[None if given is None else given.pts]
        if found is None:
            raise av.FFmpegError(1, "damaged")
        return found


def test_frames_of_one_rate_are_one_run_and_damaged_packets_are_passed_over() -> None:
    frames = {
        0: [frame(3), frame(2, level=1.0)],
        1: None,
        2: [frame(4, rate=2000)],
        3: [frame(1)],
        None: [frame(2, level=2.0)],
    }
    runs = _runs(Context(frames), [packet(1, pts=number) for number in range(4)], None)
    assert [(rate, [chunk.tolist() for chunk in chunks]) for rate, chunks in runs] == [
        (1000, [[0.5] * 3, [1.5] * 2]),
        (2000, [[0.5] * 4]),
        (1000, [[0.5], [2.5] * 2]),
    ]
    with pytest.raises(MediaError, match="no sound could be decoded"):
        _runs(Context({0: None, None: []}), [packet(1)], None)


@pytest.mark.parametrize(("end", "kept"), [(30, 100), (25, 50), (21, 10), (20, 100), (40, 100), (None, 100)])
def test_the_last_packet_is_cut_where_the_edit_list_ends(end: int | None, kept: int) -> None:
    """Ticks of 0.01 s, 100 samples a packet at 1000 a second: a cut of all or more than the frame is no cut."""
    packets = [packet(10, pts=pts) for pts in (0, 10, 20)]
    frames = {0: [frame(100)], 10: [frame(100)], 20: [frame(100)], None: []}
    (_, chunks), *_ = _runs(Context(frames), packets, end)
    assert [len(chunk) for chunk in chunks] == [100, 100, kept]
