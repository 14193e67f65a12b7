"""Random choices among a product's files and modalities: which file, which modalities are dropped.

Every draw is keyed by (seed, product, draw, modality), as those inside a file are (m5ds/inputs/keyed.py).

Shape letters: K products, M modalities. A `modality` is a row's `number` in the modality table.
"""

import torch
from torch import Tensor

from m5ds.inputs.keyed import Keys
from m5ds.kernels.common import philox
from m5ds.kernels.common.philox import Stream


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
