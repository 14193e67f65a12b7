"""The decoder: encoded files of any origin to standardised tensors on one device. A bad file is a record, not an error.

DALI decodes what its build decodes safely, PyAV and Pillow the rest, behind one contract (docs/decoding.md). Crops,
frame times and window starts come from the caller, so that nothing here is random, and no result depends on the
batch that a file shares.

Shape letters: K files decoded, S the square's side, F frames.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import av
import torch
from torch import Tensor

from m5ds.data.decode.audio import decode_audios
from m5ds.data.decode.image import decode_images
from m5ds.data.decode.plain_runtime import open_runtime
from m5ds.data.decode.video import decode_videos
from m5ds.inputs import AudioPatches, ImagePatches, VideoTubes
from m5ds.inputs.media import BadMedia, Crop, Decoded, MediaItem

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
"""Pixels in 0..1 are standardised as (pixel - mean) / std, every channel alike."""


class Decoder:
    """Decodes lists of files; safe to share among threads."""

    def __init__(self, device: str | torch.device = "auto", num_threads: int | None = None) -> None:
        """`device`: "auto" is the current CUDA device where there is one, else the CPU.

        `num_threads`: DALI's workers for each calling thread; default: the CPUs this process may use, at most 4.
        """
        if device == "auto":
            device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if num_threads is None:
            num_threads = min(len(os.sched_getaffinity(0)), 4)
        self._dali = open_runtime(self.device, num_threads)
        av.logging.set_level(None)  # FFmpeg writes every damaged packet to the terminal; failures are recorded

    def images(self, items: Sequence[MediaItem], spec: ImagePatches, crops: Sequence[Crop | None]) -> Decoded:
        """Pictures, values float32 [K, 3, S, S] with S = spec.size; `crops[i]` None keeps the centred square."""
        assert len(crops) == len(items)

        def decode() -> tuple[dict[int, Tensor], dict[int, str]]:
            return decode_images(self._dali, items, spec.size, crops)

        values, kept, failures = self._decode(items, decode)
        return Decoded(self._pixels(values, kept, crops, (spec.size, spec.size)), kept, failures)

    def videos(
        self,
        items: Sequence[MediaItem],
        spec: VideoTubes,
        crops: Sequence[Crop | None],
        times: Sequence[Tensor | Sequence[float]],
    ) -> Decoded:
        """Clips, values float32 [K, F, 3, S, S]: the frames at `times[i]`, F = spec.frames fractions in [0, 1) of a
        clip's duration, which is that of its packets. One crop for all frames of a clip."""
        assert len(crops) == len(times) == len(items)
        fractions = [torch.as_tensor(row).tolist() for row in times]
        assert all(len(row) == spec.frames for row in fractions)

        def decode() -> tuple[dict[int, Tensor], dict[int, str]]:
            return decode_videos(self._dali, items, spec.size, crops, fractions)

        values, kept, failures = self._decode(items, decode)
        return Decoded(self._pixels(values, kept, crops, (spec.frames, spec.size, spec.size)), kept, failures)

    def audios(self, items: Sequence[MediaItem], spec: AudioPatches, starts: Sequence[float]) -> Decoded:
        """Sounds, values a list of K float32 [num_mels, steps] log-mel spectrograms, each standardised (`log_mel`).

        `starts[i]` in [0, 1): where the window begins, as a share of what the sound is longer than it.
        """
        assert len(starts) == len(items)
        values, kept, failures = self._decode(items, lambda: decode_audios(self._dali, items, spec, starts))
        return Decoded([values[index] for index in kept], kept, failures)

    def _decode(
        self, items: Sequence[MediaItem], decode: Callable[[], tuple[dict[int, Any], dict[int, str]]]
    ) -> tuple[dict[int, Any], list[int], list[BadMedia]]:
        if not items:
            return {}, [], []
        with self._dali.active():
            values, reasons = decode()
        assert len(values) + len(reasons) == len(items), "a file was neither decoded nor recorded"
        failures = [BadMedia(items[i].product_id, items[i].member, reasons[i]) for i in sorted(reasons)]
        return values, sorted(values), failures

    def _pixels(
        self, values: dict[int, Tensor], kept: list[int], crops: Sequence[Crop | None], shape: tuple[int, ...]
    ) -> Tensor:
        """Channels-last 0..255 to standardised channels-first, flipped where the crop says so."""
        if not kept:
            return torch.empty(0, *shape[:-2], 3, *shape[-2:], device=self.device)
        pixels = torch.stack([values[index] for index in kept])
        flipped = [place for place, index in enumerate(kept) if (crop := crops[index]) is not None and crop.flip]
        if flipped:
            pixels[flipped] = pixels[flipped].flip(-2)
        # Channels first while they are bytes: a quarter of the memory traffic.
        scaled = pixels.movedim(-1, -3).contiguous().to(torch.float32)
        return scaled.mul_(1 / (255 * PIXEL_STD)).sub_(PIXEL_MEAN / PIXEL_STD)
