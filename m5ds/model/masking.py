"""Which rows are masked, before the model runs (DESIGN 3.4).

The embedding kernel draws the same bits again from (product, draw, modality, unit), so nothing but counts travels
between ranks. B products, N content rows of one modality.
"""

import torch
from torch import Tensor

from m5ds import modality
from m5ds.batch import Batch, ModalityRows
from m5ds.config import ModalityConfig
from m5ds.kernels.common import philox
from m5ds.kernels.embed_modalities import MaskSpec, draw_mask
from m5ds.model.configuration import M5Config


def mask_spec(name: str, settings: ModalityConfig, config: M5Config) -> MaskSpec | None:
    """How the embedding masks this modality; None where nothing is ever masked. ValueError for a unit it does not
    have.
    """
    if settings.mask_ratio == 0.0:
        return None
    spec = settings.input
    if settings.mask_unit not in spec.mask_units:
        raise ValueError(
            f"model.modalities.{name}.mask_unit {settings.mask_unit!r} does not go with {spec.kind};"
            f" use {' or '.join(spec.mask_units)}"
        )
    is_text = spec.random_replacements
    return MaskSpec(
        threshold=philox.threshold(settings.mask_ratio),
        unit="key_or_value" if settings.mask_unit == "key_or_value" else "unit",
        text=is_text,
        mask_token=config.mask_id,
        vocab_size=config.vocab_size if is_text else 0,
        first_random_token=config.first_ordinary_id if is_text else 0,
    )


def mask_units(rows: ModalityRows, settings: ModalityConfig, special_ids: list[int] | None) -> Tensor:
    """int64 [N]: what is masked together, by `mask_unit`; -1 where the data layer says so and for special tokens.

    The data layer numbers rows (tokens, patches, tubes) and table pairs; the input kind numbers the rest.
    """
    unit_N = settings.input.unit_numbers(settings.mask_unit, rows.unit_N, rows.position_N)
    if rows.token_N is None or not special_ids:
        return unit_N
    special = torch.tensor(special_ids, device=rows.token_N.device)
    return unit_N.masked_fill(torch.isin(rows.token_N, special), -1)


def draw_masks(batch: Batch, config: M5Config, seed: int, special_ids: list[int] | None = None) -> dict[str, Tensor]:
    """bool [N] by modality: True = a target. Drawn on the device of the batch's rows; every device draws the same bits.

    `special_ids` None: the configuration's.
    """
    special_ids = config.special_ids if special_ids is None else special_ids
    masks = {}
    settings = config.spec.modalities
    for name, rows in batch.modalities.items():
        device = rows.unit_N.device
        product_N = batch.product_B.repeat_interleave(rows.length_B).to(device)
        draw_N = batch.draw_B.repeat_interleave(rows.length_B).to(device)
        masks[name] = draw_mask(
            mask_units(rows, settings[name], special_ids),
            rows.part_N,
            product_N,
            draw_N,
            modality.get(name).number,
            seed,
            mask_spec(name, settings[name], config),
        )
    return masks
