"""Content rows of one product, their masks and their embedding: plain torch, product by product, float64.

Nothing here calls m5ds.model: only the batch, the configuration and Philox's words (common/philox.py) are shared.
n content rows of one segment, D hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from m5ds import modality
from m5ds.kernels.common.philox import Stream, random_words


@dataclass
class Content:
    """One segment's content rows, before the model adds a summary row."""

    position: Tensor
    unit: Tensor
    part: Tensor
    values: Tensor | None
    token: Tensor | None
    geometry: Tensor | None
    masked: Tensor
    shown: Tensor | None
    """Token ids after masking."""


def contents(model, batch, seed: int, masked: bool) -> dict[tuple[int, str], Content]:
    """By (product, modality); where `absent: zeros` fills in, rows of zeros that are never masked."""
    found = {}
    for name, rows in batch.modalities.items():
        settings = model.spec.modalities[name]
        start = 0
        for b, length in enumerate(rows.length_B.tolist()):
            chosen = slice(start, start + length)
            start += length
            if length:
                parts = [rows.position_N, rows.unit_N, rows.part_N, rows.values_NF, rows.token_N, rows.geometry_N5]
                cut = [None if part is None else part[chosen] for part in parts]
            elif model.spec.absent == "zeros":
                cut = _zeros(model, settings)
            else:
                continue
            content = Content(*cut, masked=torch.zeros(len(cut[0]), dtype=torch.bool), shown=cut[4])
            if masked and length:
                _mask(content, model, name, int(batch.product_B[b]), int(batch.draw_B[b]), seed)
            found[b, name] = content
    return found


def _zeros(model, settings) -> list[Tensor | None]:
    count = settings.input.max_rows
    whole = torch.zeros(count, dtype=torch.int64)
    is_token = settings.input.dim is None
    return [
        torch.arange(count),
        whole - 1,
        whole,
        None if is_token else torch.zeros(count, settings.input.dim, dtype=torch.float64),
        whole + model.config.pad_id if is_token else None,
        torch.zeros(count, 5, dtype=torch.float64) if settings.input.kind == "region_features" else None,
    ]


def _words(stream: Stream, name: str, product: int, draw: int, seed: int, element: Tensor) -> tuple[Tensor, ...]:
    return random_words(
        seed=seed,
        draw=draw,
        product=torch.tensor(product),
        stream=stream,
        modality=modality.get(name).number,
        element=element,
    )


def _mask(content: Content, model, name: str, product: int, draw: int, seed: int) -> None:
    settings = model.spec.modalities[name]
    unit = content.unit.clone()
    if settings.mask_unit == "token":
        unit = torch.where(unit < 0, unit, content.position)
    if settings.mask_unit == "frame":
        spec = settings.input
        rows_of_a_step = {
            "video_tubes": lambda: (spec.size // spec.patch) ** 2,
            "audio_patches": lambda: spec.num_mels // spec.patch_mels,
            "feature_rows": lambda: 1,
        }[spec.kind]()
        unit = torch.where(unit < 0, unit, content.position // rows_of_a_step)
    if content.token is not None:
        for special in model.config.special_ids:
            unit[content.token == special] = -1
    words = _words(Stream.MASK, name, product, draw, seed, unit)
    content.masked = (words[0] < settings.mask_ratio * 2**32) & (unit >= 0)
    if settings.mask_unit == "key_or_value":
        content.masked &= (words[1] % 2) == content.part
    if content.token is None:
        return
    content.shown = content.token.clone()
    if name != "text":
        content.shown[content.masked] = model.config.mask_id
        return
    words = _words(Stream.REPLACEMENT, name, product, draw, seed, torch.arange(len(unit)))
    ordinary = [token for token in range(model.config.vocab_size) if token not in model.config.special_ids]
    for row in content.masked.nonzero()[:, 0].tolist():
        share = int(words[0][row]) / 2**32
        if share < 0.8:
            content.shown[row] = model.config.mask_id
        elif share < 0.9:
            content.shown[row] = ordinary[int(words[1][row]) % len(ordinary)]


def embedded(model, name: str, content: Content) -> Tensor:
    """[rows, D]: the segment as the first block sees it (before dropout), its summary row first where it has one."""
    settings, weights = model.spec.modalities[name], model.weights

    def own(what: str) -> Tensor:
        return weights[f"embeddings.{name}_{what}"]

    def projected(what: str, values: Tensor) -> Tensor:
        where = f"embeddings.embedders.{name}.{what}"
        return values.double() @ weights[f"{where}.weight"].T + weights[f"{where}.bias"]

    if content.token is not None:
        rows = own("token")[content.shown]
    else:
        rows = projected("projection", content.values)
        if content.masked.any():
            rows = torch.where(content.masked[:, None], own("mask"), rows)
    if settings.input.kind == "region_features":
        rows = rows + projected("geometry", content.geometry) + own("position")[0]
    else:
        rows = rows + own("position")[content.position]
    if settings.input.kind == "table_pairs":
        rows = rows + own("part")[content.part]
    if settings.cls == "learned":
        rows = torch.cat([own("cls")[None], rows])
    rows = rows + own("modality")
    return F.layer_norm(rows, rows.shape[-1:], own("norm_weight"), own("norm_bias"), model.spec.layer_norm_eps)
