"""The embedding kernels as torch operators: launches, shapes for tracing, gradients.

One launch per modality writes that modality's slab of the one packed buffer. The whole op is two custom ops, forward
and backward, so that torch.compile and activation checkpointing see one node each. A custom op takes flat lists, so
each modality's tensors lie in fixed slots, an empty tensor where it has none.
"""

import re
from itertools import accumulate, pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities.configurations import DTYPES, variant
from m5ds.kernels.embed_modalities.inputs import EmbedInput
from m5ds.kernels.embed_modalities.slots import Floats, Indices, Slab, VectorSums, flatten, read_slabs, slab_of
from m5ds.kernels.embed_modalities.tiles import BACKWARD_ROWS, FORWARD_ROWS, TABLE_TILE, tile
from m5ds.kernels.embed_modalities.triton_backward import NUM_VECTORS, embed_bwd_rows_kernel, embed_bwd_table_kernel
from m5ds.kernels.embed_modalities.triton_forward import embed_fwd_kernel

LAUNCHED: set[tuple[str, str]] = set()
"""(kernel, variant) of every launch of this process, for tests."""

_SHAPE = re.compile("_[A-Z0-9]+$")
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def embed_modalities_triton(
    inputs: list[EmbedInput], layout: PackedLayout, *, seed: int, eps: float
) -> tuple[Tensor, list[Tensor]]:
    """See `m5ds.kernels.embed_modalities.embed_modalities`. `ValueError` for float64 and widths past the table."""
    dtype = inputs[0].modality_D.dtype
    if dtype not in DTYPES:
        raise ValueError(f"inputs[0].modality_D is {dtype}; the Triton path takes float16, bfloat16 and float32")
    tile(inputs[0].modality_D.shape[0])
    content_starts = accumulate((item.num_rows for item in inputs), initial=0)
    slabs = [
        slab_of(item, start, stop, content_start)
        for item, (start, stop), content_start in zip(inputs, pairwise(layout.slab), content_starts, strict=False)
    ]
    x_TD, masked_N, *_ = embed_forward(
        flatten(slab.floats for slab in slabs),
        flatten(slab.indices for slab in slabs),
        flatten(slab.numbers for slab in slabs),
        layout.row_product_T,
        layout.row_position_T,
        layout.seg_len_BM,
        layout.product_B,
        layout.draw_B,
        seed & 0xFFFFFFFF,
        eps,
    )
    return x_TD, list(masked_N.split([item.num_rows for item in inputs]))


def _cls_before(seg_len_BM: Tensor, number: int) -> Tensor:
    """int64 [B]: [CLS] rows of the modality up to and with each product."""
    return (seg_len_BM[:, number] > 0).cumsum(0)


@torch.library.custom_op("m5ds::embed_forward", mutates_args=())
def embed_forward(
    floats: list[Tensor],
    indices: list[Tensor],
    numbers: list[int],
    row_product_T: Tensor,
    row_position_T: Tensor,
    seg_len_BM: Tensor,
    product_B: Tensor,
    draw_B: Tensor,
    seed: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_TD; bool mask and int64 tokens seen of all modalities' content rows in turn; float32 mean_T, rstd_T."""
    slabs = read_slabs(floats, indices, numbers)
    x_TD, masked_N, seen_N, mean_T, rstd_T = _outputs(slabs, row_product_T)
    for number, slab in enumerate(slabs):
        values, index, told = slab
        if told.rows == 0:
            continue
        entry = tile(slab.width)
        LAUNCHED.add(("fwd", variant(DTYPES[x_TD.dtype], entry.columns, bool(told.has_tokens))))
        embed_fwd_kernel[(triton.cdiv(told.rows, FORWARD_ROWS),)](
            **_pointers(values),
            **_pointers(index),
            p_row_product=row_product_T,
            p_row_position=row_position_T,
            p_cls_before=_cls_before(seg_len_BM, number),
            p_product=product_B,
            p_draw=draw_B,
            p_x=x_TD,
            p_mean=mean_T,
            p_rstd=rstd_T,
            p_masked=masked_N.view(torch.uint8),
            p_seen=seen_N,
            slab_start=told.start,
            slab_rows=told.rows,
            content_start=told.content_start,
            seed=seed,
            modality_number=told.modality,
            threshold=told.threshold,
            mask_kind=told.mask_kind,
            text=told.text,
            mask_token=told.mask_token,
            first_random=told.first_random,
            num_random=told.num_random,
            has_cls=told.has_cls,
            has_part=slab.has_part,
            has_extra=slab.has_extra,
            width=slab.width,
            eps=eps,
            ROWS=entry.rows,
            PROGRAM_ROWS=FORWARD_ROWS,
            COLUMNS=entry.columns,
            TOKENS=bool(told.has_tokens),
            num_warps=entry.num_warps,
            num_stages=1,
        )
    return x_TD, masked_N, seen_N, mean_T, rstd_T


@embed_forward.register_fake
def _(
    floats: list[Tensor],
    indices: list[Tensor],
    numbers: list[int],
    row_product_T: Tensor,
    row_position_T: Tensor,
    seg_len_BM: Tensor,
    product_B: Tensor,
    draw_B: Tensor,
    seed: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(read_slabs(floats, indices, numbers), row_product_T)


def _outputs(slabs: list[Slab], row_product_T: Tensor) -> _Outputs:
    like, num_rows = slabs[0].floats.modality_D, row_product_T.shape[0]
    num_content = sum(slab.numbers.content_rows for slab in slabs)
    return (
        like.new_empty(num_rows, slabs[0].width),
        row_product_T.new_empty(num_content, dtype=torch.bool),
        row_product_T.new_zeros(num_content),  # only rows of tokens are written
        row_product_T.new_empty(num_rows, dtype=torch.float32),
        row_product_T.new_empty(num_rows, dtype=torch.float32),
    )


def _pointers(slots: Floats | Indices) -> dict[str, Tensor]:
    """The slots as the kernels' arguments: `norm_bias_D` is `p_norm_bias`."""
    return {f"p_{_SHAPE.sub('', name)}": value for name, value in slots._asdict().items()}


@torch.library.custom_op("m5ds::embed_backward", mutates_args=())
def embed_backward(
    grad_TD: Tensor,
    floats: list[Tensor],
    indices: list[Tensor],
    numbers: list[int],
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
    for number, slab in enumerate(read_slabs(floats, indices, numbers)):
        values, index, told = slab
        if told.rows == 0:
            grads += [torch.zeros_like(value) for value in values]
            continue
        entry = tile(slab.width)
        LAUNCHED.add(("bwd_rows", variant(DTYPES[grad_TD.dtype], entry.columns, bool(told.has_tokens))))
        grad_rows_ND = grad_TD.new_empty(told.content_rows, slab.width)
        # Without a mask and an extra the projection's gradient is every content row's gradient.
        one_buffer = not told.has_tokens and not told.mask_kind and not slab.has_extra
        grad_base_ND = grad_rows_ND if one_buffer or told.has_tokens else torch.empty_like(grad_rows_ND)
        num_programs = triton.cdiv(told.rows, BACKWARD_ROWS)
        vectors = mean_T.new_empty(num_programs, NUM_VECTORS, slab.width)
        read = {**_pointers(values), **_pointers(index)}
        embed_bwd_rows_kernel[(num_programs,)](
            **{name: value for name, value in read.items() if name in embed_bwd_rows_kernel.arg_names},
            p_grad_x=grad_TD,
            p_row_product=row_product_T,
            p_row_position=row_position_T,
            p_cls_before=_cls_before(seg_len_BM, number),
            p_mean=mean_T,
            p_rstd=rstd_T,
            p_masked=masked_N.view(torch.uint8),
            p_seen=seen_N,
            p_grad_base=grad_base_ND,
            p_grad_rows=grad_rows_ND,
            p_grad_vectors=vectors,
            slab_start=told.start,
            slab_rows=told.rows,
            content_start=told.content_start,
            has_mask=told.mask_kind,
            has_cls=told.has_cls,
            has_part=slab.has_part,
            has_extra=slab.has_extra,
            write_base=int(not told.has_tokens and not one_buffer),
            width=slab.width,
            ROWS=entry.rows,
            PROGRAM_ROWS=BACKWARD_ROWS,
            COLUMNS=entry.columns,
            TOKENS=bool(told.has_tokens),
            num_warps=entry.num_warps,
            num_stages=1,
        )
        if told.has_tokens:
            seen_n = seen_N[told.content_start : told.content_start + told.content_rows]
            grad_base_ND = _table_gradient(grad_rows_ND, seen_n, values.base)
        grads += _slab_gradients(slab, grad_base_ND, grad_rows_ND, VectorSums(*vectors.sum(0)))
    return grads


def _slab_gradients(slab: Slab, grad_base: Tensor, grad_rows_ND: Tensor, sums: VectorSums) -> Floats:
    values = slab.floats
    dtype = values.modality_D.dtype
    parts = [sums.part_0_D, sums.part_1_D]

    def given(slot: Tensor, grad: Tensor) -> Tensor:
        return grad.to(dtype, copy=True) if slot.numel() else torch.zeros_like(slot)

    return Floats(
        base=grad_base,
        position_table_PD=_table_gradient(grad_rows_ND, slab.indices.position_N, values.position_table_PD),
        # every row is a [CLS] row or of one part
        modality_D=torch.stack([sums.cls_D, *parts]).sum(0).to(dtype),
        part_table_2D=given(values.part_table_2D, torch.stack(parts)),
        extra_ND=grad_rows_ND if slab.has_extra else torch.zeros_like(values.extra_ND),
        mask_D=given(values.mask_D, sums.mask_D),
        cls_D=given(values.cls_D, sums.cls_D),
        norm_weight_D=sums.norm_weight_D.to(dtype, copy=True),
        norm_bias_D=sums.norm_bias_D.to(dtype, copy=True),
    )


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
    embed_bwd_table_kernel[(entry.numel(), triton.cdiv(width, TABLE_TILE.columns))](
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
    numbers: list[int],
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
    floats, indices, numbers, row_product_T, row_position_T, seg_len_BM, *_ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*floats, *indices, row_product_T, row_position_T, seg_len_BM, *output[1:])
    ctx.numbers, ctx.num_floats = numbers, len(floats)


def _backward(ctx: Any, grad_TD: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    # Read once: activation checkpointing computes them again when they are asked for, and only once.
    saved = ctx.saved_tensors
    floats, indices, rest = list(saved[: ctx.num_floats]), list(saved[ctx.num_floats : -7]), saved[-7:]
    grads = embed_backward(grad_TD, floats, indices, ctx.numbers, *rest)
    return grads, [None] * len(indices), *(None,) * 8


embed_forward.register_autograd(_backward, setup_context=_setup_context)
