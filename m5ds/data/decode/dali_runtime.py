"""DALI's dynamic mode behind a few calls: a context for each thread, batches in, tensors out.

DALI reports a file that it cannot decode as an ordinary exception and goes on working. Its contexts belong to one
thread, and each has a thread pool of its own, lest one caller's damaged file fail in another's batch.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor


class DaliRuntime:
    """Where DALI runs: one device, `num_threads` workers for each calling thread. ImportError where it is not installed
    (plain_runtime.py stands in for it).
    """

    def __init__(self, device: torch.device, num_threads: int) -> None:
        self._ndd: Any = import_module("nvidia.dali.experimental.dynamic")
        self._types: Any = import_module("nvidia.dali.types")
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
            context = self._ndd.EvalContext(num_threads=self._num_threads, device_id=self._device_id)
            self._local.context = context
        with context, self._ndd.EvalMode.sync_cpu:
            yield

    @property
    def name(self) -> str:
        """DALI's name of the device."""
        return "gpu" if self.on_gpu else "cpu"

    def images(self, files: Sequence[bytes], alpha: bool) -> list[Tensor]:
        """uint8 [H, W, 3] (or 4 with `alpha`) for every picture, turned as EXIF says; raises where one is damaged."""
        output = self._types.DALIImageType.ANY_DATA if alpha else self._types.DALIImageType.RGB
        pictures = self._ndd.decoders.image(self._encoded(files), device=self.name, output_type=output)
        return [torch.from_dlpack(picture) for picture in pictures.tensors]

    def videos(self, files: Sequence[bytes], frames: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        """uint8 [H, W, 3] frames of every clip, by their numbers in presentation order; fewer of a damaged clip."""
        # As a batch: a plain list would be part of the operator, of which DALI would make and keep one for each list.
        numbers = self._ndd.as_batch([np.asarray(chosen, np.int32) for chosen in frames])
        clips = self._ndd.decoders.video(self._encoded(files), frames=numbers, device=self.name)
        return [list(torch.from_dlpack(clip).unbind()) for clip in clips.tensors]

    def audios(self, files: Sequence[bytes]) -> list[tuple[Tensor, float]]:
        """(float32 [samples, channels], sample rate) for every sound, on the CPU."""
        sounds, rates = self._ndd.decoders.audio(self._encoded(files))
        rates_K = torch.from_dlpack(self._ndd.as_tensor(rates)).flatten().tolist()
        return [(torch.from_dlpack(sound), rate) for sound, rate in zip(sounds.tensors, rates_K, strict=True)]

    def resample(self, waves: Sequence[Tensor], rates: Sequence[float], rate: float) -> list[Tensor]:
        """Every float32 [samples] wave at the new rate, on the CPU; a wave that has it is returned as it is."""
        resampled = list(waves)
        wanted = [place for place, old in enumerate(rates) if old != rate]
        if wanted:
            in_rates = self._ndd.as_batch([np.float32(rates[place]) for place in wanted])
            batch = self._ndd.as_batch([waves[place] for place in wanted])
            made = self._ndd.audio_resample(batch, in_rate=in_rates, out_rate=float(rate)).tensors
            for place, wave in zip(wanted, made, strict=True):
                resampled[place] = torch.from_dlpack(wave)
        return resampled

    def _encoded(self, files: Sequence[bytes]) -> Any:
        """A batch of byte strings, not copied."""
        return self._ndd.as_batch([np.frombuffer(data, np.uint8) for data in files])
