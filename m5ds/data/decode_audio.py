"""Sounds to log-mel spectrograms: DALI for plain WAV, FLAC and OGG Vorbis, PyAV for the rest, one spectrogram for both.

Shape letters: K sounds, N samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from m5ds.data.audio_probe import whole_samples
from m5ds.data.dali_runtime import DaliRuntime
from m5ds.data.media import (
    MAX_CHANNELS,
    MAX_PACKETS,
    MAX_SAMPLE_RATE,
    MAX_WHOLE_SAMPLES,
    MIN_SAMPLE_RATE,
    MediaError,
    MediaItem,
    reason_for,
)
from m5ds.data.video_index import open_container
from m5ds.inputs import AudioPatches

_MEL_FLOOR = 1e-6
"""Added to the mel power before the logarithm: digital silence is finite."""
_STD_FLOOR = 1e-3
_PREROLL_SECONDS = 0.2
"""Decoded ahead of a window and thrown away: MP3, AAC and Opus need what came before."""


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
            waves[index] = _by_pyav(item.data, seconds, float(starts[index]))
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
        if group and total + claim > MAX_WHOLE_SAMPLES:
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


@dataclass(slots=True)
class _Chunk:
    """Consecutive decoded samples."""

    time: float
    samples: np.ndarray
    """float32 [channels, samples]."""


def _by_pyav(data: bytes, seconds: float, start: float) -> tuple[Tensor, float]:
    """The window of the first sound stream: float32 [N] mono at the file's rate, and that rate."""
    container = open_container(data)
    if not container.streams.audio:
        raise MediaError("there is no sound stream")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None:
        raise MediaError("no decoder for the sound stream")
    context.thread_count = 1
    packets, times, end = _timeline(container, stream)
    origin = times[0]
    first = origin + start * max(end - origin - seconds, 0.0)
    chunks: list[_Chunk] = []
    rate = 0
    ends = [*times[1:], end]
    needed = [
        (time, packet)
        for packet, time, until in zip(packets, times, ends, strict=True)
        if until >= first - _PREROLL_SECONDS and time <= first + seconds
    ]
    for time, packet in [*needed, (end, None)]:
        try:
            frames = context.decode(packet)
        except av.FFmpegError:
            continue
        for frame in frames:
            rate = rate or _checked_rate(frame)
            if frame.sample_rate == rate and (not chunks or len(frame.layout.channels) == len(chunks[0].samples)):
                chunks.append(_Chunk(time if frame.time is None else frame.time, _as_float(frame)))
    if not chunks:
        raise MediaError("no sound could be decoded")
    wave_N = torch.from_numpy(np.concatenate([chunk.samples for chunk in chunks], axis=1).mean(axis=0))
    skip = min(max(round((first - chunks[0].time) * rate), 0), len(wave_N) - 1)
    return wave_N[skip : skip + math.ceil(seconds * rate)], float(rate)


def _timeline(
    container: av.container.InputContainer, stream: av.AudioStream
) -> tuple[list[av.Packet], list[float], float]:
    """The stream's packets in memory, when each begins and when the last ends, in seconds."""
    packets: list[av.Packet] = []
    times: list[float] = []
    now = 0.0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            base = float(packet.time_base or 0)
            if packet.pts is not None:
                now = packet.pts * base
            packets.append(packet)
            times.append(now)
            now += (packet.duration or 0) * base
            if len(packets) > MAX_PACKETS:
                raise MediaError(f"the sound stream has more than {MAX_PACKETS} packets")
    except av.FFmpegError:
        if not packets:
            raise
    if not packets:
        raise MediaError("the sound stream holds no samples")
    return packets, times, now


def _checked_rate(frame: av.AudioFrame) -> int:
    channels = len(frame.layout.channels)
    if not (MIN_SAMPLE_RATE <= frame.sample_rate <= MAX_SAMPLE_RATE and 0 < channels <= MAX_CHANNELS):
        raise MediaError(f"the sound claims {frame.sample_rate} samples a second in {channels} channels")
    return frame.sample_rate


def _as_float(frame: av.AudioFrame) -> np.ndarray:
    """float32 [channels, samples]; integers become -1..1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    info = np.iinfo(str(samples.dtype))
    middle = 0 if info.min else 128
    return (samples.astype(np.float32) - middle) / (info.max - middle + 1)
