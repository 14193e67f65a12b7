"""The embedding kernels as torch operators: launches, shapes for tracing, gradients.

One launch per modality writes that modality's slab of the one packed buffer. The whole op is two custom ops, forward
and backward, so that torch.compile and activation checkpointing see one node each. A custom op takes flat lists, so
each modality's tensors lie in fixed slots, an empty tensor where it has none.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from m5ds.kernels.embed_modalities import triton_kernels as kernels
from m5ds.kernels.embed_modalities.configurations import DTYPES, variant
from m5ds.kernels.embed_modalities.inputs import EmbedInput
from m5ds.kernels.embed_modalities.tiles import BACKWARD_ROWS, FORWARD_ROWS, TABLE_TILE, tile
from m5ds.kernels.layout import PackedLayout

LAUNCHED: set[tuple[str, str]] = set()
"""(kernel, variant) of every launch of this process, for tests."""

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_NUM_FLOATS, _NUM_INDICES, _NUM_SPECS = 9, 4, 13


@dataclass
class _Slab:
    """One modality's slots. Floats and indices are empty tensors where the modality has none."""

    base: Tensor
    position_table_PD: Tensor
    modality_D: Tensor
    part_table_2D: Tensor
    extra_ND: Tensor
    mask_D: Tensor
    cls_D: Tensor
    norm_weight_D: Tensor
    norm_bias_D: Tensor
    token_N: Tensor
    position_N: Tensor
    unit_N: Tensor
    part_N: Tensor
    start: int
    rows: int
    content_start: int
    content_rows: int
    tokens: int
    modality: int
    threshold: int
    mask_kind: int
    text: int
    mask_token: int
    first_random: int
    num_random: int
    has_cls: int

    @property
    def has_part(self) -> int:
        return int(self.part_table_2D.numel() > 0)

    @property
    def has_extra(self) -> int:
        """Whether rows are added; the gradient of an extra without rows is empty anyway."""
        return int(self.extra_ND.numel() > 0)

    @property
    def width(self) -> int:
        return self.modality_D.shape[0]

    def floats(self) -> list[Tensor]:
        return [
            self.base,
            self.position_table_PD,
            self.modality_D,
            self.part_table_2D,
            self.extra_ND,
            self.mask_D,
            self.cls_D,
            self.norm_weight_D,
            self.norm_bias_D,
        ]


def embed_modalities_triton(
    inputs: list[EmbedInput], layout: PackedLayout, *, seed: int, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """See `m5ds.kernels.embed_modalities.embed_modalities`. `ValueError` for float64 and widths past the table."""
    dtype = inputs[0].modality_D.dtype
    if dtype not in DTYPES:
        raise ValueError(f"inputs[0].modality_D is {dtype}; the Triton path takes float16, bfloat16 and float32")
    tile(inputs[0].modality_D.shape[0])
    floats: list[Tensor] = []
    indices: list[Tensor] = []
    specs: list[int] = []
    content_start = 0
    for number, item in enumerate(inputs):
        no_float, no_index = item.modality_D.new_empty(0), item.position_N.new_empty(0)
        base = item.projected_ND if item.token_table_VD is None else item.token_table_VD
        added = (item.position_table_PD, item.modality_D, item.part_table_2D, item.extra_ND)
        own = (base, *added, item.mask_D, item.cls_D, item.norm_weight_D, item.norm_bias_D)
        floats += [no_float if value is None else value.contiguous() for value in own]
        index = (item.token_N, item.position_N, item.unit_N, item.part_N)
        indices += [no_index if value is None else value.contiguous() for value in index]
        specs += _specs(item, layout.slab[number], layout.slab[number + 1], content_start)
        content_start += item.num_rows
    x_TD, masked_N, *_ = embed_forward(
        floats,
        indices,
        specs,
        layout.row_product_T,
        layout.row_position_T,
        layout.seg_len_BM,
        layout.product_B,
        layout.draw_B,
        seed & 0xFFFFFFFF,
        eps,
    )
    return x_TD, list(masked_N.split([item.num_rows for item in inputs]))


def _specs(item: EmbedInput, start: int, stop: int, content_start: int) -> list[int]:
    """The integers of `_Slab`, in its order."""
    mask, kind = item.mask, kernels.NO_MASK
    if mask is not None and mask.threshold > 0:
        kind = kernels.MASK_UNIT if mask.unit == "unit" else kernels.MASK_KEY_OR_VALUE
    return [
        start,
        stop - start,
        content_start,
        item.num_rows,
        int(item.token_N is not None),
        item.modality,
        mask.threshold if mask else 0,
        kind,
        int(mask is not None and mask.text),
        mask.mask_token if mask else 0,
        mask.first_random_token if mask else 0,
        max(1, mask.vocab_size - mask.first_random_token) if mask else 1,
        int(item.cls_D is not None),
    ]


def _slabs(floats: list[Tensor], indices: list[Tensor], specs: list[int]) -> list[_Slab]:
    def slots(values: list[Any], size: int, number: int) -> list[Any]:
        return values[number * size : (number + 1) * size]

    return [
        _Slab(*slots(floats, _NUM_FLOATS, m), *slots(indices, _NUM_INDICES, m), *slots(specs, _NUM_SPECS, m))
        for m in range(len(floats) // _NUM_FLOATS)
    ]


def _cls_before(seg_len_BM: Tensor, number: int) -> Tensor:
    """int64 [B]: [CLS] rows of the modality up to and with each product."""
    return (seg_len_BM[:, number] > 0).cumsum(0)


@torch.library.custom_op("m5ds::embed_forward", mutates_args=())
def embed_forward(
    floats: list[Tensor],
    indices: list[Tensor],
    specs: list[int],
    row_product_T: Tensor,
    row_position_T: Tensor,
    seg_len_BM: Tensor,
    product_B: Tensor,
    draw_B: Tensor,
    seed: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_TD; bool mask and int64 tokens seen of all modalities' content rows in turn; float32 mean_T, rstd_T."""
    x_TD, masked_N, seen_N, mean_T, rstd_T = _outputs(floats, specs, row_product_T)
    for number, slab in enumerate(_slabs(floats, indices, specs)):
        if slab.rows == 0:
            continue
        entry = tile(slab.width)
        LAUNCHED.add(("fwd", variant(DTYPES[x_TD.dtype], entry.columns, bool(slab.tokens))))
        kernels.embed_fwd_kernel[(triton.cdiv(slab.rows, FORWARD_ROWS),)](
            *slab.floats(),
            slab.token_N,
            slab.position_N,
            slab.unit_N,
            slab.part_N,
            row_product_T,
            row_position_T,
            _cls_before(seg_len_BM, number),
            product_B,
            draw_B,
            x_TD,
            mean_T,
            rstd_T,
            masked_N.view(torch.uint8),
            seen_N,
            slab.start,
            slab.rows,
            slab.content_start,
            seed,
            slab.modality,
            slab.threshold,
            slab.mask_kind,
            slab.text,
            slab.mask_token,
            slab.first_random,
            slab.num_random,
            slab.has_cls,
            slab.has_part,
            slab.has_extra,
            slab.width,
            eps,
            ROWS=entry.rows,
            PROGRAM_ROWS=FORWARD_ROWS,
            COLUMNS=entry.columns,
            TOKENS=bool(slab.tokens),
            num_warps=entry.num_warps,
            num_stages=1,
        )
    return x_TD, masked_N, seen_N, mean_T, rstd_T


@embed_forward.register_fake
def _(
    floats: list[Tensor],
    indices: list[Tensor],
    specs: list[int],
    row_product_T: Tensor,
    row_position_T: Tensor,
    seg_len_BM: Tensor,
    product_B: Tensor,
    draw_B: Tensor,
    seed: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(floats, specs, row_product_T)


def _outputs(floats: list[Tensor], specs: list[int], row_product_T: Tensor) -> _Outputs:
    num_rows, width = row_product_T.shape[0], floats[2].shape[0]
    num_content = sum(specs[3::_NUM_SPECS])
    return (
        floats[2].new_empty(num_rows, width),
        row_product_T.new_empty(num_content, dtype=torch.bool),
        row_product_T.new_zeros(num_content),  # only rows of tokens are written
        row_product_T.new_empty(num_rows, dtype=torch.float32),
        row_product_T.new_empty(num_rows, dtype=torch.float32),
    )


@torch.library.custom_op("m5ds::embed_backward", mutates_args=())
def embed_backward(
    grad_TD: Tensor,
    floats: list[Tensor],
    indices: list[Tensor],
    specs: list[int],
    row_product_T: Tensor,
    row_position_T: Tensor,
    seg_len_BM: Tensor,
    masked_N: Tensor,
    seen_N: Tensor,
    mean_T: Tensor,
    rstd_T: Tensor,
) -> list[Tensor]:
    """Gradients to `floats`, slot by slot."""
    grads: list[Tensor] = []
    grad_TD = grad_TD.contiguous()
    for number, slab in enumerate(_slabs(floats, indices, specs)):
        if slab.rows == 0:
            grads += [torch.zeros_like(value) for value in slab.floats()]
            continue
        entry = tile(slab.width)
        LAUNCHED.add(("bwd_rows", variant(DTYPES[grad_TD.dtype], entry.columns, bool(slab.tokens))))
        grad_rows_ND = grad_TD.new_empty(slab.content_rows, slab.width)
        # Without a mask and an extra the projection's gradient is every content row's gradient.
        one_buffer = not slab.tokens and not slab.mask_kind and not slab.has_extra
        grad_base_ND = grad_rows_ND if one_buffer or slab.tokens else torch.empty_like(grad_rows_ND)
        num_programs = triton.cdiv(slab.rows, BACKWARD_ROWS)
        vectors = mean_T.new_empty(num_programs, kernels.NUM_VECTORS, slab.width)
        kernels.embed_bwd_rows_kernel[(num_programs,)](
            grad_TD,
            *slab.floats()[:-1],
            slab.position_N,
            slab.part_N,
            row_product_T,
            row_position_T,
            _cls_before(seg_len_BM, number),
            mean_T,
            rstd_T,
            masked_N.view(torch.uint8),
            seen_N,
            grad_base_ND,
            grad_rows_ND,
            vectors,
            slab.start,
            slab.rows,
            slab.content_start,
            slab.mask_kind,
            slab.has_cls,
            slab.has_part,
            slab.has_extra,
            int(not slab.tokens and not one_buffer),
            slab.width,
            ROWS=entry.rows,
            PROGRAM_ROWS=BACKWARD_ROWS,
            COLUMNS=entry.columns,
            TOKENS=bool(slab.tokens),
            num_warps=entry.num_warps,
            num_stages=1,
        )
        if slab.tokens:
            seen_n = seen_N[slab.content_start : slab.content_start + slab.content_rows]
            grad_base_ND = _table_gradient(grad_rows_ND, seen_n, slab.base)
        grads += _slab_gradients(slab, grad_base_ND, grad_rows_ND, vectors.sum(0))
    return grads


def _slab_gradients(slab: _Slab, grad_base: Tensor, grad_rows_ND: Tensor, sums: Tensor) -> list[Tensor]:
    dtype = slab.modality_D.dtype
    weight_D, bias_D, mask_D, cls_D, *parts = sums.to(dtype)

    def given(slot: Tensor, grad: Tensor) -> Tensor:
        return grad.clone() if slot.numel() else torch.zeros_like(slot)

    return [
        grad_base,
        _table_gradient(grad_rows_ND, slab.position_N, slab.position_table_PD),
        sums[3:].sum(0).to(dtype),  # every row is a [CLS] row or of one part
        given(slab.part_table_2D, torch.stack(parts)),
        grad_rows_ND if slab.has_extra else torch.zeros_like(slab.extra_ND),
        given(slab.mask_D, mask_D),
        given(slab.cls_D, cls_D),
        weight_D.clone(),
        bias_D.clone(),
    ]


def _table_gradient(grad_rows_ND: Tensor, index_N: Tensor, table: Tensor) -> Tensor:
    """The table's gradient: rows with equal indices are brought together by a stable sort, then summed in order."""
    grad_table, (num_entries, width) = torch.zeros_like(table), table.shape
    if index_N.numel() == 0:
        return grad_table
    sorted_N, order_N = torch.sort(index_N, stable=True)
    if num_entries <= index_N.numel():
        entry = torch.arange(num_entries, device=index_N.device)
        first = torch.searchsorted(sorted_N, entry)
        last = torch.searchsorted(sorted_N, entry, right=True)
    else:
        # A run at the first row of each index, an empty one at the others: nothing waits to learn how many there are.
        entry, first = sorted_N, torch.arange(index_N.numel(), device=index_N.device)
        is_first = torch.ones_like(first, dtype=torch.bool)
        is_first[1:] = sorted_N[1:] != sorted_N[:-1]
        last = torch.where(is_first, torch.searchsorted(sorted_N, sorted_N, right=True), first)
    LAUNCHED.add(("bwd_table", variant(DTYPES[table.dtype], TABLE_TILE.columns, False)))
    kernels.embed_bwd_table_kernel[(entry.numel(), triton.cdiv(width, TABLE_TILE.columns))](
        grad_rows_ND,
        order_N,
        first,
        last,
        entry,
        grad_table,
        width,
        ROWS=TABLE_TILE.rows,
        COLUMNS=TABLE_TILE.columns,
        num_warps=TABLE_TILE.num_warps,
        num_stages=1,
    )
    return grad_table


@embed_backward.register_fake
def _(
    grad_TD: Tensor,
    floats: list[Tensor],
    indices: list[Tensor],
    specs: list[int],
    row_product_T: Tensor,
    row_position_T: Tensor,
    seg_len_BM: Tensor,
    masked_N: Tensor,
    seen_N: Tensor,
    mean_T: Tensor,
    rstd_T: Tensor,
) -> list[Tensor]:
    return [torch.empty_like(value) for value in floats]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    floats, indices, specs, row_product_T, row_position_T, seg_len_BM, *_ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*floats, *indices, row_product_T, row_position_T, seg_len_BM, *output[1:])
    ctx.specs, ctx.num_floats = specs, len(floats)


def _backward(ctx: Any, grad_TD: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    # Read once: activation checkpointing computes them again when they are asked for, and only once.
    saved = ctx.saved_tensors
    floats, indices, rest = list(saved[: ctx.num_floats]), list(saved[ctx.num_floats : -7]), saved[-7:]
    grads = embed_backward(grad_TD, floats, indices, ctx.specs, *rest)
    return grads, [None] * len(indices), *(None,) * 8


embed_forward.register_autograd(_backward, setup_context=_setup_context)
