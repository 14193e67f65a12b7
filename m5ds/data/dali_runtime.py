"""DALI's dynamic mode behind a few calls: a context for each thread, batches in, tensors out.

DALI reports a file that it cannot decode as an ordinary exception and goes on working. Its contexts belong to one
thread, and each has a thread pool of its own, lest one caller's damaged file fail in another's batch.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import torch
from nvidia.dali import types
from torch import Tensor

from m5ds.data.media import Box


class DaliRuntime:
    """Where DALI runs: one device, `num_threads` workers for each calling thread."""

    def __init__(self, device: torch.device, num_threads: int) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self._device_id = device.index or 0 if self.on_gpu else None
        self._num_threads = num_threads
        self._local = threading.local()

    @contextmanager
    def active(self) -> Iterator[None]:
        """DALI calls inside run on this runtime; CPU work is finished, or has raised, when a call returns."""
        context = getattr(self._local, "context", None)
        if context is None:
            context = ndd.EvalContext(num_threads=self._num_threads, device_id=self._device_id)
            self._local.context = context
        with context, ndd.EvalMode.sync_cpu:
            yield

    @property
    def name(self) -> str:
        """DALI's name of the device."""
        return "gpu" if self.on_gpu else "cpu"

    def images(self, files: Sequence[bytes], alpha: bool) -> list[Any]:
        """uint8 [H, W, 3] (or 4 with `alpha`) for every picture, turned as EXIF says; raises where one is damaged."""
        output = types.ANY_DATA if alpha else types.RGB
        return list(ndd.decoders.image(_encoded(files), device=self.name, output_type=output).tensors)

    def video(self, data: bytes, frames: Sequence[int]) -> list[Tensor]:
        """uint8 [H, W, 3] frames of one clip, by their numbers in presentation order."""
        clip = ndd.decoders.video(_encoded([data]), frames=list(frames), device=self.name)
        return list(torch.from_dlpack(clip.tensors[0]).unbind())

    def audios(self, files: Sequence[bytes]) -> list[tuple[Tensor, float]]:
        """(float32 [samples, channels], sample rate) for every sound, on the CPU."""
        sounds, rates = ndd.decoders.audio(_encoded(files))
        rates_K = torch.from_dlpack(ndd.as_tensor(rates)).flatten().tolist()
        return [(torch.from_dlpack(sound), rate) for sound, rate in zip(sounds.tensors, rates_K, strict=True)]

    def resample(self, waves: Sequence[Tensor], rates: Sequence[float], rate: float) -> list[Tensor]:
        """Every float32 [samples] wave at the new rate, on the CPU."""
        in_rates = ndd.as_batch([np.float32(value) for value in rates])
        resampled = ndd.audio_resample(ndd.as_batch(list(waves)), in_rate=in_rates, out_rate=float(rate))
        return [torch.from_dlpack(wave) for wave in resampled.tensors]

    def resize(self, pictures: Sequence[Any], boxes: Sequence[Box], size: int) -> Tensor:
        """float32 [K, size, size, 3] in 0..255: the box of every uint8 [H, W, 3] picture, resized with antialiasing."""
        start = ndd.as_batch([np.array((box.top, box.left), np.float32) for box in boxes])
        end = ndd.as_batch([np.array((box.bottom, box.right), np.float32) for box in boxes])
        batch = ndd.as_batch(list(pictures), layout="HWC", device=self.name)
        resized = ndd.resize(
            batch, size=[size, size], roi_start=start, roi_end=end, dtype=ndd.float32, interp_type=types.INTERP_LINEAR
        )
        # Rounding may leave the range. A new tensor, since the batch is DALI's memory, which the next call may reuse.
        return torch.from_dlpack(ndd.as_tensor(resized)).clamp(0.0, 255.0)


def _encoded(files: Sequence[bytes]) -> Any:
    """A batch of byte strings, not copied."""
    return ndd.as_batch([np.frombuffer(data, np.uint8) for data in files])
