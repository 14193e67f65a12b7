"""Sounds to log-mel spectrograms: DALI for plain WAV and FLAC, PyAV for the rest, one spectrogram for both.

Shape letters: K sounds, N samples.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from m5ds.data.decode.dali_runtime import DaliRuntime
from m5ds.data.decode.media import (
    MAX_CHANNELS,
    MAX_SAMPLE_RATE,
    MAX_WHOLE_SAMPLES,
    MIN_SAMPLE_RATE,
    reason_for,
)
from m5ds.data.decode.packets import read_packets
from m5ds.data.decode.probes.audio import whole_samples
from m5ds.data.decode.probes.streams import stream_format
from m5ds.data.decode.video_index import open_container
from m5ds.inputs import AudioPatches
from m5ds.inputs.media import MediaError, MediaItem

_MEL_FLOOR = 1e-6
"""Added to the mel power before the logarithm: digital silence is finite."""
_STD_FLOOR = 1e-3
_PREROLL_SECONDS = 0.2
"""Decoded ahead of a window and thrown away: MP3, AAC and Opus need what came before."""
_WHOLE_WINDOWS = 2.0
"""Sounds of at most as many windows are decoded whole, longer ones around the window only."""


def decode_audios(
    dali: DaliRuntime, items: Sequence[MediaItem], spec: AudioPatches, starts: Sequence[float]
) -> tuple[dict[int, Tensor], dict[int, str]]:
    """float32 [num_mels, steps] for every sound that decodes, and the reason for every other, by index."""
    seconds = spec.max_steps * spec.hop / spec.sample_rate
    waves: dict[int, tuple[Tensor, float]] = {}
    reasons: dict[int, str] = {}

    def keep(index: int, sound: Tensor, rate: float) -> None:
        most = math.ceil(seconds * rate)
        first = int(starts[index] * max(len(sound) - most, 0))
        waves[index] = (sound[first : first + most].mean(dim=1), rate)

    for indices in _bounded(items):
        _by_dali(dali, items, indices, keep)
    for index, item in enumerate(items):
        if index in waves:
            continue
        try:
            waves[index] = _by_pyav(dali, item.data, seconds, float(starts[index]))
        except Exception as error:  # av.FFmpegError, MediaError, ValueError and more from damaged containers
            reasons[index] = reason_for(error)
    if not waves:
        return {}, reasons
    # Floating-point files may hold anything.
    clean = [torch.nan_to_num(wave, 0.0, 1.0, -1.0).clamp(-1e3, 1e3) for wave, _ in waves.values()]
    resampled = dali.resample(clean, [rate for _, rate in waves.values()], spec.sample_rate)
    return {index: log_mel(wave.to(dali.device), spec) for index, wave in zip(waves, resampled, strict=True)}, reasons


def log_mel(wave_N: Tensor, spec: AudioPatches) -> Tensor:
    """float32 [num_mels, steps]: the log-mel power of a mono wave at `spec.sample_rate`, standardised over its steps.

    There is a step for every `hop` samples begun, centred on it, rounded up to whole patches with silence and at most
    `spec.max_steps`. Mean 0 and standard deviation 1 over the steps that hold sound.
    """
    wave_N = wave_N[: spec.max_steps * spec.hop]
    sounding = max(math.ceil(len(wave_N) / spec.hop), 1)
    steps = math.ceil(sounding / spec.patch_steps) * spec.patch_steps
    padded_N = functional.pad(wave_N, (0, steps * spec.hop - len(wave_N)))
    window, filters = _tables(spec.n_fft, spec.num_mels, spec.sample_rate, wave_N.device)
    spectrum = torch.stft(
        padded_N, spec.n_fft, spec.hop, window=window, center=True, pad_mode="constant", return_complex=True
    )
    power = torch.view_as_real(spectrum[:, :steps]).square().sum(dim=-1)
    mel = (filters @ power + _MEL_FLOOR).log()
    # In float64, or silence would be what rounding left of its mean.
    heard = mel[:, :sounding].double()
    return ((mel - heard.mean()) / (heard.std(correction=0) + _STD_FLOOR)).to(torch.float32)


@lru_cache(maxsize=16)
def _tables(n_fft: int, num_mels: int, sample_rate: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hann window [n_fft]; triangular filters [num_mels, n_fft // 2 + 1], even on the scale 2595 log10(1 + f / 700)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    mels = torch.linspace(0, top, num_mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    return torch.hann_window(n_fft, device=device), filters.to(device, torch.float32)


def _bounded(items: Sequence[MediaItem]) -> Iterator[list[int]]:
    """The sounds that DALI gets, in groups of at most MAX_WHOLE_SAMPLES."""
    group: list[int] = []
    total = 0
    for index, item in enumerate(items):
        claim = whole_samples(item.data)
        if claim is None:
            continue
        if total + claim > MAX_WHOLE_SAMPLES:
            yield group
            group, total = [], 0
        group.append(index)
        total += claim
    if group:
        yield group


def _by_dali(dali: DaliRuntime, items: Sequence[MediaItem], indices: list[int], keep: Any) -> None:
    """Decode together; where one is damaged, one by one. What fails alone, or holds nothing, is left to PyAV."""
    try:
        sounds = dali.audios([items[index].data for index in indices])
    except Exception:  # DALI raises RuntimeError, ValueError and its own types
        for index in indices if len(indices) > 1 else []:
            _by_dali(dali, items, [index], keep)
        return
    for index, (sound, rate) in zip(indices, sounds, strict=True):
        if len(sound):
            keep(index, sound, rate)


def _by_pyav(dali: DaliRuntime, data: bytes, seconds: float, start: float) -> tuple[Tensor, float]:
    """The window of the first sound stream: float32 [N] mono at the file's rate, and that rate.

    The sound is what `ffmpeg -i FILE` gives: the decoded samples one after the other, whatever the timestamps say.
    """
    container = open_container(data)
    if not container.streams.audio:
        raise MediaError("there is no sound stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise MediaError("no decoder for the sound stream")
    stream.codec_context.thread_count = 1
    packets = read_packets(container, stream, "sound", "samples")
    begins = list(accumulate(_heard_seconds(packets), initial=0.0))
    total = begins.pop()
    is_whole = total <= _WHOLE_WINDOWS * seconds
    if not is_whole:
        # Only what the window needs: its place is then known to a packet's rounding.
        first = start * (total - seconds)
        first_packet = max(bisect_right(begins, first - _PREROLL_SECONDS) - 1, 0)
        origin = begins[first_packet]
        packets = packets[first_packet : bisect_right(begins, first + seconds + _PREROLL_SECONDS)]
    end = stream.duration if stream_format(data) == "mov" else None
    runs = _runs(stream.codec_context, packets, end)
    rate = runs[0][0]
    waves = [torch.from_numpy(np.concatenate(chunks)) for _, chunks in runs]
    wave_N = torch.cat(dali.resample(waves, [float(one) for one, _ in runs], float(rate)))
    most = math.ceil(seconds * rate)
    if is_whole:
        skip = int(start * max(len(wave_N) - most, 0))
    else:
        skip = min(max(round((first - origin) * rate), 0), max(len(wave_N) - most, 0))
    return wave_N[skip : skip + most], float(rate)


def _heard_seconds(packets: Sequence[av.Packet]) -> Iterator[float]:
    """How long each packet sounds: nothing where an edit list discards it, less what an encoder's delay takes away."""
    for packet in packets:
        length = packet.duration or 0
        known = 0 < length < 2**31 and not packet.is_discard  # FFmpeg reports a few negative lengths as huge ones
        yield float(length * packet.time_base) if known and packet.time_base else 0.0


def _runs(context: Any, packets: Sequence[av.Packet], end: int | None) -> list[tuple[int, list[np.ndarray]]]:
    """(rate, mono chunks) for each stretch of one rate: chained streams may change theirs.

    `end`: when an edit list ends, in ticks; the last packet may hold more.
    """
    runs: list[tuple[int, list[np.ndarray]]] = []
    for packet in (*packets, None):
        try:
            frames = context.decode(packet)
        except av.FFmpegError:
            continue
        for frame in frames:
            rate = _checked_rate(frame)
            mono_N = as_float(frame).mean(axis=0)
            padding = _padding(context.name, packet, frame, end) if end is not None and packet is packets[-1] else 0
            if 0 < padding < len(mono_N):
                mono_N = mono_N[:-padding]
            if not runs or runs[-1][0] != rate:
                runs.append((rate, []))
            runs[-1][1].append(mono_N)
    if not runs:
        raise MediaError("no sound could be decoded")
    return runs


def _padding(codec: str, packet: av.Packet, frame: av.AudioFrame, end: int) -> int:
    """Samples of a frame past the edit list's end: by the packet's length as FFmpeg 9 does, for AAC by the frame's."""
    if packet.pts is None or not packet.time_base:
        return 0
    if codec == "aac" and frame.pts is not None:
        past = float(frame.pts * packet.time_base) + frame.samples / frame.sample_rate
    else:
        past = float((packet.pts + (packet.duration or 0)) * packet.time_base)
    return round((past - float(end * packet.time_base)) * frame.sample_rate)


def _checked_rate(frame: av.AudioFrame) -> int:
    channels = len(frame.layout.channels)
    if not (MIN_SAMPLE_RATE <= frame.sample_rate <= MAX_SAMPLE_RATE and 0 < channels <= MAX_CHANNELS):
        raise MediaError(f"the sound claims {frame.sample_rate} samples a second in {channels} channels")
    return frame.sample_rate


def as_float(frame: av.AudioFrame) -> np.ndarray:
    """float32 [channels, samples]; integers become -1..1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    info = np.iinfo(str(samples.dtype))
    middle = 0 if info.min else 128
    return (samples.astype(np.float32) - middle) / (info.max - middle + 1)
