"""What stands for an absent modality: nothing (`drop`), one learned row at fusion (`token`), or zeros (`zeros`,
DESIGN 3.1).

B products, M modalities, N content rows of one modality, T packed rows, D width. Rows that a policy adds exist
(`seg_len > 0`) but are not present: attention sees them, no loss does.
"""

import dataclasses

import torch
from torch import Tensor, nn

from m5ds.batch import Batch, ModalityRows
from m5ds.config import ModelConfig
from m5ds.kernels.common.layout import PackedLayout


class AbsentTokens(nn.Module):
    """Owns one learned row per modality and puts it where a product lacks the modality: the one re-layout of a
    forward.
    """

    def __init__(self, num_modalities: int, dim: int) -> None:
        super().__init__()
        self.tokens_MD = nn.Parameter(torch.zeros(num_modalities, dim))

    def forward(self, x_TD: Tensor, layout: PackedLayout, source_T: Tensor, num_absent: tuple[int, ...]) -> Tensor:
        """Rows of the layout that `with_absent_rows` made; `source_T` and `num_absent` are its other results."""
        # expand, not index_select: its backward is a plain sum, deterministic on every device.
        absent = [row_D.expand(count, -1) for row_D, count in zip(self.tokens_MD.unbind(0), num_absent, strict=True)]
        return torch.cat([x_TD, *absent]).index_select(0, source_T)


def with_absent_rows(layout: PackedLayout) -> tuple[PackedLayout, Tensor, tuple[int, ...]]:
    """The layout with one row in every empty segment, where each of its rows comes from, and absent rows per modality.

    Rows keep their order, so row t of the new buffer is old row source_T[t], or absent row source_T[t] - T. `layout`
    and all results lie on the CPU.
    """
    length_BM = layout.seg_len_BM
    absent_BM = length_BM == 0
    new = PackedLayout.build(length_BM.masked_fill(absent_BM, 1), layout.present_BM, layout.product_B, layout.draw_B)
    is_absent_T = absent_BM[new.row_product_T, new.row_modality_T]
    source_T = torch.where(is_absent_T, layout.num_rows + is_absent_T.cumsum(0) - 1, (~is_absent_T).cumsum(0) - 1)
    return new, source_T, tuple(absent_BM.sum(0).tolist())


def impute_zeros(batch: Batch, spec: ModelConfig, pad_id: int) -> Batch:
    """The batch with `max_rows` zero rows (pad tokens) for every absent modality, never masked; presence stays as it
    is.
    """
    modalities = {
        name: _imputed(rows, spec.modalities[name].input.max_rows, pad_id) for name, rows in batch.modalities.items()
    }
    return dataclasses.replace(batch, modalities=modalities)


def _imputed(rows: ModalityRows, max_rows: int, pad_id: int) -> ModalityRows:
    absent_B = rows.length_B == 0
    length_B = rows.length_B.masked_fill(absent_B, max_rows)
    added_N = absent_B.repeat_interleave(length_B)
    # Where each new row comes from: an old row, or the filler behind the old rows.
    source_N = torch.where(added_N, rows.num_rows, (~added_N).cumsum(0) - 1)
    first_N = (length_B.cumsum(0) - length_B).repeat_interleave(length_B)
    within_N = torch.arange(len(added_N)) - first_N
    device = rows.position_N.device
    source_N, added_N, within_N = (value.to(device) for value in (source_N, added_N, within_N))

    def fill(values: Tensor, filler: float) -> Tensor:
        return torch.cat([values, values.new_full((1, *values.shape[1:]), filler)]).index_select(0, source_N)

    def fill_if_set(values: Tensor | None, filler: float) -> Tensor | None:
        return None if values is None else fill(values, filler)

    return dataclasses.replace(
        rows,
        length_B=length_B,
        position_N=torch.where(added_N, within_N, fill(rows.position_N, 0)),
        unit_N=fill(rows.unit_N, -1),
        part_N=fill(rows.part_N, 0),
        values_NF=fill_if_set(rows.values_NF, 0.0),
        token_N=fill_if_set(rows.token_N, pad_id),
        geometry_N5=fill_if_set(rows.geometry_N5, 0.0),
    )
