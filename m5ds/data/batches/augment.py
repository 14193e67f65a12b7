"""Random choices of the training data: crops, frame times, sound windows, which file, which modalities are dropped.

Every draw is keyed by (seed, product, draw, modality) and never by the place in a batch, so that a product's rows are
the same whatever the world size and whoever shares its batch. All values are fractions: of the clip's duration, of the
time by which a sound is longer than its window. Evaluation takes the centre and the first file.

Shape letters: K products or files, M modalities, T frames. A `modality` is a row number of the modality table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.data.decode.media import Crop
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


def first_files(keys: Keys, seed: int, modality: int, num_files: list[int]) -> list[int]:
    """Which of each product's files is tried first; `num_files[k]` >= 1."""
    words_K = keys.words(seed, Stream.MEDIA_CHOICE, modality)[0]
    return (words_K * torch.tensor(num_files) >> 32).tolist()


def kept_modalities(keys: Keys, seed: int, modalities: list[int], present_KM: Tensor, dropout: float) -> Tensor:
    """bool [K, M]: the present modalities that modality dropout keeps; at least one where any is present.

    `modalities` [M]: the modalities of the columns. Where all would go, the one with the largest word stays.
    """
    words_KM = torch.stack([keys.words(seed, Stream.MODALITY_DROPOUT, number)[0] for number in modalities], dim=1)
    kept_KM = present_KM & (words_KM >= philox.threshold(dropout))
    largest_K = torch.where(present_KM, words_KM, -1).argmax(dim=1)
    rescued_KM = torch.zeros_like(kept_KM).scatter_(1, largest_K[:, None], True) & present_KM
    return torch.where(kept_KM.any(dim=1, keepdim=True), kept_KM, rescued_KM)
