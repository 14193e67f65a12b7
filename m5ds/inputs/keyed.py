"""Random choices inside a file: crops, frame times, sound windows. Evaluation takes the centre.

Every draw is keyed by (seed, product, draw, modality) and never by the place in a batch, so that a product's rows are
the same whatever the world size and whoever shares its batch. All values are fractions: of the clip's duration, of the
time by which a sound is longer than its window.

Shape letters: K products or files, T frames. A `modality` is a row's `number` in the modality table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.inputs.media import Crop
from m5ds.kernels.common import philox
from m5ds.kernels.common.philox import Stream


@dataclass(frozen=True, slots=True)
class Keys:
    """Whose draws: one entry a product."""

    product_K: Tensor
    """int64 hash of the product's id."""
    draw_K: Tensor
    """int64 epoch or mixture draw."""

    def take(self, indices: list[int]) -> "Keys":
        """The keys of some of the products, in that order."""
        index = torch.tensor(indices, dtype=torch.int64)
        return Keys(self.product_K[index], self.draw_K[index])

    def words(self, seed: int, stream: Stream, modality: int, element: Tensor | int = 0) -> tuple[Tensor, ...]:
        """Four words [K] for a scalar element, [K, E] for elements [E]."""
        product, draw = self.product_K, self.draw_K
        if isinstance(element, Tensor):
            product, draw = product[:, None], draw[:, None]
        return philox.random_words(
            seed=seed, draw=draw, product=product, stream=stream, modality=modality, element=element
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The choices for K files of one modality, drawn or the centre."""

    keys: Keys
    """The files' products."""
    seed: int
    modality: int
    random: bool
    """False: the centred square, the middle of each part of a clip, the middle of a sound."""

    @classmethod
    def centre(cls, num_files: int) -> "Draws":
        """Nothing drawn, for files that belong to no product."""
        none_K = torch.zeros(num_files, dtype=torch.int64)
        return cls(keys=Keys(none_K, none_K), seed=0, modality=0, random=False)

    def crops(self) -> list[Crop] | list[None]:
        """One a file; None is the largest centred square."""
        return crops(self.keys, self.seed, self.modality) if self.random else [None] * len(self.keys.product_K)

    def frame_times(self, num_frames: int) -> Tensor:
        """float64 [K, T] in [0, 1): which frames of each clip, as shares of its duration."""
        if self.random:
            return frame_times(self.keys, self.seed, self.modality, num_frames)
        return centre_times(len(self.keys.product_K), num_frames)

    def window_starts(self) -> list[float]:
        """K numbers in [0, 1): where each sound's window starts, as a share of what the sound is longer than it."""
        if self.random:
            return window_starts(self.keys, self.seed, self.modality).tolist()
        return [0.5] * len(self.keys.product_K)


def crops(keys: Keys, seed: int, modality: int) -> list[Crop]:
    """One crop a product. No flips: left and right are told apart in titles."""
    words = keys.words(seed, Stream.CROP, modality)
    numbers_K4 = torch.stack([philox.uniform(word_K) for word_K in words], dim=1)
    return [Crop(area=area, aspect=aspect, y=y, x=x) for area, aspect, y, x in numbers_K4.tolist()]


def frame_times(keys: Keys, seed: int, modality: int, num_frames: int) -> Tensor:
    """float64 [K, T] in [0, 1), ascending: one time in each of `num_frames` equal parts of the clip."""
    part_T = torch.arange(num_frames)
    inside_KT = philox.uniform(keys.words(seed, Stream.FRAMES, modality, part_T)[0])
    return (part_T + inside_KT) / num_frames


def centre_times(num_files: int, num_frames: int) -> Tensor:
    """float64 [K, T]: the middle of each of `num_frames` equal parts of the clip."""
    return ((torch.arange(num_frames, dtype=torch.float64) + 0.5) / num_frames).expand(num_files, num_frames)


def window_starts(keys: Keys, seed: int, modality: int) -> Tensor:
    """float64 [K] in [0, 1): where the window starts, as a share of what the sound is longer than it."""
    return philox.uniform(keys.words(seed, Stream.AUDIO_WINDOW, modality)[0])
