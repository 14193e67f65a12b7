"""What the embedding kernels read of each modality, in named slots: a custom op takes only flat lists.

Letters: N content rows of one modality, D width, P positions.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from m5ds.kernels.embed_modalities.inputs import EmbedInput
from m5ds.kernels.embed_modalities.triton_common import MASK_KEY_OR_VALUE, MASK_UNIT, NO_MASK


class Floats(NamedTuple):
    """Tensors that get a gradient; empty where the modality has none."""

    base: Tensor
    """Token table [V, D] or projected rows [N, D]."""
    position_table_PD: Tensor
    modality_D: Tensor
    part_table_2D: Tensor
    extra_ND: Tensor
    mask_D: Tensor
    cls_D: Tensor
    norm_weight_D: Tensor
    norm_bias_D: Tensor


class Indices(NamedTuple):
    """int64 [N]; empty where the modality has none."""

    token_N: Tensor
    position_N: Tensor
    unit_N: Tensor
    part_N: Tensor


class Numbers(NamedTuple):
    """What else a launch is told; flags are 0 or 1."""

    start: int
    """First row of the slab in the packed buffer."""
    rows: int
    content_start: int
    """First content row among those of all modalities in turn."""
    content_rows: int
    has_tokens: int
    modality: int
    threshold: int
    mask_kind: int
    text: int
    mask_token: int
    first_random: int
    num_random: int
    has_cls: int


class VectorSums(NamedTuple):
    """Gradients that the backward sums over rows, in the order in which the kernel stores them, float32."""

    norm_weight_D: Tensor
    norm_bias_D: Tensor
    mask_D: Tensor
    cls_D: Tensor
    part_0_D: Tensor
    part_1_D: Tensor


class Slab(NamedTuple):
    """One modality's slots."""

    floats: Floats
    indices: Indices
    numbers: Numbers

    @property
    def has_part(self) -> int:
        return int(self.floats.part_table_2D.numel() > 0)

    @property
    def has_extra(self) -> int:
        """Whether rows are added; the gradient of an extra without rows is empty anyway."""
        return int(self.floats.extra_ND.numel() > 0)

    @property
    def width(self) -> int:
        return self.floats.modality_D.shape[0]


def slab_of(item: EmbedInput, start: int, stop: int, content_start: int) -> Slab:
    """The slots of one modality whose slab is rows `start` to `stop`."""
    no_float, no_index = item.modality_D.new_empty(0), item.position_N.new_empty(0)
    floats = Floats(
        item.projected_ND if item.token_table_VD is None else item.token_table_VD,
        item.position_table_PD,
        item.modality_D,
        item.part_table_2D,
        item.extra_ND,
        item.mask_D,
        item.cls_D,
        item.norm_weight_D,
        item.norm_bias_D,
    )
    indices = Indices(item.token_N, item.position_N, item.unit_N, item.part_N)
    mask, kind = item.mask, NO_MASK
    if mask is not None and mask.threshold > 0:
        kind = MASK_UNIT if mask.unit == "unit" else MASK_KEY_OR_VALUE
    numbers = Numbers(
        start=start,
        rows=stop - start,
        content_start=content_start,
        content_rows=item.num_rows,
        has_tokens=int(item.token_N is not None),
        modality=item.modality,
        threshold=mask.threshold if mask else 0,
        mask_kind=kind,
        text=int(mask is not None and mask.text),
        mask_token=mask.mask_token if mask else 0,
        first_random=mask.first_random_token if mask else 0,
        num_random=max(1, mask.vocab_size - mask.first_random_token) if mask else 1,
        has_cls=int(item.cls_D is not None),
    )
    return Slab(
        Floats(*(no_float if value is None else value.contiguous() for value in floats)),
        Indices(*(no_index if value is None else value.contiguous() for value in indices)),
        numbers,
    )


_Slots = TypeVar("_Slots", Floats, Indices, Numbers)


def flatten(slots: Iterable[_Slots]) -> list[Any]:
    """Every modality's slots one after another."""
    return [value for group in slots for value in group]


def read_slabs(floats: list[Tensor], indices: list[Tensor], numbers: list[int]) -> list[Slab]:
    """What `flatten` made flat, per modality."""
    columns = (_groups(Floats, floats), _groups(Indices, indices), _groups(Numbers, numbers))
    return [Slab(*slots) for slots in zip(*columns, strict=True)]


def _groups(kind: type[_Slots], values: list[Any]) -> list[_Slots]:
    size = len(kind._fields)
    return [kind(*values[start : start + size]) for start in range(0, len(values), size)]
