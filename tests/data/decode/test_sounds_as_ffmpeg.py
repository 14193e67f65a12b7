"""Sample by sample what ffmpeg decodes: containers, encoder delays, cuts, chains, junk; and the window of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ffmpeg_cases import copied, samples_of, sound
from media_samples import item

from m5ds.data.decode.audio import _by_pyav, decode_audios, log_mel
from m5ds.data.decode.dali_runtime import DaliRuntime
from m5ds.inputs import AudioPatches

SPEC = AudioPatches(seconds=20.0, num_mels=32)
KINDS = {
    "opus.ogg": ("libopus",),
    "slow.opus": ("libopus", "-frame_duration", 60),
    "opus.webm": ("libopus",),
    "opus.mp4": ("libopus",),
    "vorbis.ogg": ("libvorbis",),
    "lame.mp3": ("libmp3lame",),
    "lame.mkv": ("libmp3lame",),
    "lame.mp4": ("libmp3lame",),
    "aac.m4a": ("aac",),
    "aac.aac": ("aac",),
    "aac.ts": ("aac",),
    "aac.flv": ("aac",),
    "flac.flac": ("flac",),
    "flac.ogg": ("flac",),
    "alac.m4a": ("alac",),
    "u8.wav": ("pcm_u8",),
    "s16.wav": ("pcm_s16le",),
    "s24.wav": ("pcm_s24le",),
    "s32.wav": ("pcm_s32le",),
    "f32.wav": ("pcm_f32le",),
    "f64.wav": ("pcm_f64le",),
    "rf64.wav": ("pcm_s16le", "-rf64", "always"),
    "s16.w64": ("pcm_s16le",),
    "s24.aiff": ("pcm_s24be",),
    "amr.amr": ("libopencore_amrnb", "-ar", 8000, "-ac", 1),
    "wma.wma": ("wmav2",),
    "ac3.mp4": ("ac3",),
}


@pytest.fixture(scope="module")
def dali() -> DaliRuntime:
    return DaliRuntime(torch.device("cpu"), 1)


def decoded_wave(dali: DaliRuntime, data: bytes, monkeypatch: pytest.MonkeyPatch, start: float = 0.0) -> np.ndarray:
    """The mono wave ahead of the mel spectrogram, at the file's own rate: resampling is left out."""
    waves: list[torch.Tensor] = []

    def keep(made: list[torch.Tensor], rates: list[float], rate: float) -> list[torch.Tensor]:
        waves[:] = made
        return list(made)

    with dali.active(), monkeypatch.context() as patch:
        patch.setattr(dali, "resample", keep)
        values, reasons = decode_audios(dali, [item(data)], SPEC, [start])
    assert list(values) == [0] and not reasons, reasons
    return waves[0].numpy()


def assert_as_ffmpeg(dali: DaliRuntime, path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    expected_N, _ = samples_of(path)
    made_N = decoded_wave(dali, path.read_bytes(), monkeypatch)
    assert len(made_N) == len(expected_N)
    np.testing.assert_allclose(made_N, expected_N, atol=1e-4)
    return len(made_N)


@pytest.mark.parametrize("name", KINDS)
def test_sounds_are_those_of_ffmpeg(
    dali: DaliRuntime, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delays and paddings of encoders are cut off, no more and no less."""
    assert_as_ffmpeg(dali, sound(tmp_path / name, "-c:a", *KINDS[name]), monkeypatch)


@pytest.mark.parametrize("name", ["opus.ogg", "vorbis.ogg", "lame.mp3", "aac.m4a", "flac.flac", "s16.wav"])
def test_cut_sounds_are_those_of_ffmpeg(
    dali: DaliRuntime, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sound(tmp_path / name, "-c:a", *KINDS[name], seconds=4.0, rate=48000)
    for number, (early, late) in enumerate(((("-ss", 1.37), ()), (("-ss", 1.37, "-t", 1.1), ()), ((), ("-ss", 0.9)))):
        cut = copied(tmp_path / f"cut{number}{whole.suffix}", whole, *early, late=late)
        assert assert_as_ffmpeg(dali, cut, monkeypatch) > 40_000


@pytest.mark.parametrize("codec", ["libopus", "libvorbis"])
def test_every_link_of_a_chain_is_heard(
    dali: DaliRuntime, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last page's position is that of the last link alone, and timestamps start again."""
    links = [sound(tmp_path / f"{s}.ogg", "-c:a", codec, seconds=s, rate=48000) for s in (0.7, 1.3)]
    chain = tmp_path / "chain.ogg"
    chain.write_bytes(b"".join(link.read_bytes() for link in links))
    assert assert_as_ffmpeg(dali, chain, monkeypatch) >= 2.0 * 48000 - 1


@pytest.mark.parametrize("junk", [b"\0" * 30_000, b"HTTP/1.1 200 OK\r\n\r\n", b"\xff\xe0junk\xff\xfb\0\0" * 9])
def test_junk_ahead_of_an_mp3_is_skipped(
    dali: DaliRuntime, tmp_path: Path, junk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sound(tmp_path / "clean.mp3", "-c:a", "libmp3lame")
    junky = tmp_path / "junk.mp3"
    junky.write_bytes(junk + path.read_bytes())
    assert assert_as_ffmpeg(dali, junky, monkeypatch) > 50_000


@pytest.mark.parametrize("name", ["flac.mkv", "aac.m4a", "lame.mp3", "opus.ogg"])
def test_the_window_of_a_long_sound_is_that_of_the_whole(dali: DaliRuntime, tmp_path: Path, name: str) -> None:
    """Long sounds are decoded around the window only."""
    kind = KINDS.get(name, ("flac",))
    data = sound(tmp_path / name, "-c:a", *kind, seconds=6.0, rate=48000).read_bytes()
    with dali.active():
        whole_N, rate = _by_pyav(dali, data, 10.0, 0.0)
        for start in (0.0, 0.4, 1.0):
            window_N, _ = _by_pyav(dali, data, 1.0, start)
            assert len(window_N) == rate
            first = round(start * (len(whole_N) - rate))
            slack = 0 if start == 0.0 else 1300  # a packet: what an encoder's delay takes of the first is not known
            errors = [
                float((whole_N[place : place + len(window_N)] - window_N).square().mean().sqrt())
                for place in range(max(first - slack, 0), min(first + slack, len(whole_N) - len(window_N)) + 1)
            ]
            # Opus goes on from a state, AAC draws its noise anew: far below the sound, which is of 0.12.
            assert min(errors) < (0.01 if name in ("opus.ogg", "aac.m4a") else 1e-4)


@pytest.mark.parametrize("name", ["s16.wav", "alac.m4a"])
def test_a_sound_is_the_mean_of_its_channels(
    dali: DaliRuntime, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WAV goes to DALI, ALAC to PyAV; the two channels differ."""
    codec, pan = ("-c:a", *KINDS[name]), "pan=mono|c0="
    left_N, right_N = (
        decoded_wave(dali, sound(tmp_path / f"{one}.{name}", *codec, "-af", pan + one).read_bytes(), monkeypatch)
        for one in ("c0", "c1")
    )
    both_N = decoded_wave(dali, sound(tmp_path / name, *codec).read_bytes(), monkeypatch)
    assert np.abs(left_N - right_N).max() > 0.2
    np.testing.assert_allclose(both_N, (left_N + right_N) / 2, atol=1e-3)


def test_padding_has_no_part_in_the_statistics_of_a_spectrogram() -> None:
    """40 steps of sound in 48: the sounding ones have mean 0 and deviation 1, and the whole does not."""
    spec = AudioPatches(seconds=1.0, num_mels=32)
    wave_N = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 40 * spec.hop)).float()
    mel = log_mel(wave_N, spec)
    assert mel.shape == (32, 48)
    assert abs(float(mel[:, :40].mean())) < 1e-3 and abs(float(mel[:, :40].std(correction=0)) - 1) < 5e-3
    assert abs(float(mel.mean())) > 0.5
