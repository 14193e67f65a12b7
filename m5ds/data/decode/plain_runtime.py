"""Where DALI is not installed: the calls of `DaliRuntime` answered by Pillow, PyAV and numpy, with the same values.

What only training needs should not stand in the way of one who embeds products: DALI is 955 MB. Pixels and
waves are equal bit for bit (tests/data/decode/test_plain_runtime.py); only the speed differs.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from itertools import chain

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps
from torch import Tensor

from m5ds.data.decode.audio import as_float
from m5ds.data.decode.dali_runtime import DaliRuntime
from m5ds.data.decode.probes.media import image_format
from m5ds.data.decode.resample import resample
from m5ds.data.decode.video_index import open_container

_CHROMA = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""How DALI makes RGB: chroma interpolated in both directions, without shortcuts."""


class PlainRuntime(DaliRuntime):
    """The same calls without DALI. All decoding is done on the CPU, whatever the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = False

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def images(self, files: Sequence[bytes], alpha: bool) -> list[Tensor]:
        return [_picture(data, "RGBA" if alpha else "RGB") for data in files]

    def videos(self, files: Sequence[bytes], frames: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        return [_frames(data, numbers) for data, numbers in zip(files, frames, strict=True)]

    def audios(self, files: Sequence[bytes]) -> list[tuple[Tensor, float]]:
        return [_sound(data) for data in files]

    def resample(self, waves: Sequence[Tensor], rates: Sequence[float], rate: float) -> list[Tensor]:
        return [
            wave if old == rate else torch.from_numpy(resample(wave.numpy(), old, rate))
            for wave, old in zip(waves, rates, strict=True)
        ]


def open_runtime(device: torch.device, num_threads: int) -> DaliRuntime:
    """DALI with so many threads, or what stands in for it where it is not installed, which is said once."""
    try:
        import_module("nvidia.dali")
    except ImportError:
        _say_once()
        return PlainRuntime(device)
    return DaliRuntime(device, num_threads)


@lru_cache(maxsize=1)
def _say_once() -> None:
    warnings.warn(
        "DALI is not installed: Pillow and PyAV decode all media, to the same values but slower; for training install"
        " m5ds[dali-cuda120] or m5ds[dali-cuda130]",
        stacklevel=3,
    )


def _picture(data: bytes, mode: str) -> Tensor:
    """uint8 [H, W, channels of the mode], turned as EXIF says."""
    with Image.open(io.BytesIO(data), formats=[image_format(data)]) as picture:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(picture).convert(mode)))


def _frames(data: bytes, numbers: Sequence[int]) -> list[Tensor]:
    """uint8 [H, W, 3] frames by their numbers in presentation order; fewer where the clip lacks some."""
    made: dict[int, Tensor] = {}
    reformatter = VideoReformatter()
    with open_container(data) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_count = 1
        packets = [packet for packet in container.demux(stream) if packet.size and packet.pts is not None]
        shown = sorted(range(len(packets)), key=lambda place: packets[place].pts or 0)
        groups: dict[int, dict[int | None, int]] = {}
        for number in sorted(set(numbers)):
            place = shown[number]
            groups.setdefault(_key_before(packets, place), {})[packets[place].pts] = number
        for start, wanted in groups.items():
            for packet in chain(packets[start:], (None,)):
                for frame in context.decode(packet):
                    if frame.pts in wanted:
                        made[wanted.pop(frame.pts)] = _rgb(reformatter, frame)
                if not wanted:
                    break
            context.flush_buffers()
    return [made[number] for number in numbers if number in made]


def _rgb(reformatter: VideoReformatter, frame: av.VideoFrame) -> Tensor:
    picture = reformatter.reformat(frame, format="rgb24", interpolation=_CHROMA, threads=1).to_ndarray()
    return torch.from_numpy(np.ascontiguousarray(picture))


def _key_before(packets: Sequence[av.Packet], last: int) -> int:
    return next((place for place in range(last, -1, -1) if packets[place].is_keyframe), 0)


def _sound(data: bytes) -> tuple[Tensor, float]:
    """(float32 [samples, channels], sample rate) of the whole first sound stream."""
    with open_container(data) as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        parts = [as_float(frame) for frame in container.decode(stream)]
        samples = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
        return torch.from_numpy(np.ascontiguousarray(samples.T)), float(stream.rate)
