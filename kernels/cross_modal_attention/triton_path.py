"""The Triton path of cross_modal_attention as two `torch.library` ops, plain ops to torch.compile and checkpointing.

Shape letters: T packed rows, H heads, D head dim, N tiles.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from m5ds.kernels.common.dispatch import interpreting
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.philox import threshold
from m5ds.kernels.common.tiles import architecture, attention_tile, padded_head_dim
from m5ds.kernels.cross_modal_attention.configurations import variant
from m5ds.kernels.cross_modal_attention.dropout import Dropout
from m5ds.kernels.cross_modal_attention.planning.tables import Side, Tables, tables_for
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec
from m5ds.kernels.cross_modal_attention.triton_backward import attention_bwd_dkdv_kernel, attention_bwd_dq_kernel
from m5ds.kernels.cross_modal_attention.triton_forward import attention_fwd_kernel

LAUNCHED: set[tuple[str, str]] = set()
"""(kernel, variant) of every launch of this process, for tests."""
_DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def cross_modal_attention_triton(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: PackedLayout,
    spec: AttentionSpec,
    *,
    scale: float,
    dropout: Dropout,
) -> Tensor:
    """Same contract as `cross_modal_attention_reference`; head dims of `tiles.HEAD_DIMS`, bf16, fp16 and fp32."""
    tables = _tables(layout, spec, q_THD)
    out_THD, _ = attention_forward(
        _unit_stride(q_THD),
        _unit_stride(k_THD),
        _unit_stride(v_THD),
        list(_FlatTables.of(tables)),
        layout.product_B,
        layout.draw_B,
        tables.size,
        scale,
        dropout.probability,
        dropout.seed,
        dropout.layer,
    )
    return out_THD


@torch.compiler.disable
def _tables(layout: PackedLayout, spec: AttentionSpec, q_THD: Tensor) -> Tables:
    """Built from the host's lengths, so outside any compiled graph."""
    arch = architecture(q_THD.device)
    return tables_for(layout, spec, arch=arch, head_dim=q_THD.shape[2], itemsize=q_THD.element_size())


class _FlatTables(NamedTuple):
    """`Tables` in named slots: a custom op takes only flat lists of tensors."""

    fwd_own: Tensor
    fwd_other: Tensor
    fwd_tiles_N5: Tensor
    dq_own: Tensor
    dq_other: Tensor
    dq_tiles_N5: Tensor
    dkdv_own: Tensor
    dkdv_other: Tensor
    dkdv_tiles_N5: Tensor
    code_T: Tensor
    offset_T: Tensor

    @classmethod
    def of(cls, tables: Tables) -> "_FlatTables":
        forward, dq, dkdv = tables.queries["fwd"], tables.queries["bwd_dq"], tables.keys
        return cls(*_parts(forward), *_parts(dq), *_parts(dkdv), tables.code_T, tables.offset_T)

    def side(self, kernel: str) -> Side:
        """The lists of `fwd`, `bwd_dq` or `bwd_dkdv`."""
        if kernel == "fwd":
            return Side(self.fwd_own, self.fwd_other, self.fwd_tiles_N5)
        if kernel == "bwd_dq":
            return Side(self.dq_own, self.dq_other, self.dq_tiles_N5)
        return Side(self.dkdv_own, self.dkdv_other, self.dkdv_tiles_N5)


def _parts(side: Side) -> tuple[Tensor, Tensor, Tensor]:
    return side.own_rows, side.other_rows, side.tiles_N5


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


@torch.library.custom_op("m5ds::cross_modal_attention", mutates_args=())
def attention_forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    tables: list[Tensor],
    product_B: Tensor,
    draw_B: Tensor,
    size: str,
    scale: float,
    dropout: float,
    seed: int,
    layer: int,
) -> tuple[Tensor, Tensor]:
    """(out_THD, lse_HT): attention and the base-2 log-sum-exp of every row (0 where a row sees no key)."""
    num_rows, num_heads, _ = q_THD.shape
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_HT = torch.empty(num_heads, num_rows, dtype=torch.float32, device=q_THD.device)
    _launch(
        "fwd",
        attention_fwd_kernel,
        (q_THD, k_THD, v_THD, out_THD, lse_HT),
        (q_THD, k_THD, v_THD),
        _FlatTables(*tables),
        (product_B, draw_B),
        (size, dropout, seed, layer),
        (scale * math.log2(math.e),),
    )
    return out_THD, lse_HT


@attention_forward.register_fake
def _(q_THD, k_THD, v_THD, tables, product_B, draw_B, size, scale, dropout, seed, layer):
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    return out_THD, q_THD.new_empty(q_THD.shape[1], q_THD.shape[0], dtype=torch.float32)


@torch.library.custom_op("m5ds::cross_modal_attention_backward", mutates_args=())
def attention_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    tables: list[Tensor],
    product_B: Tensor,
    draw_B: Tensor,
    size: str,
    scale: float,
    dropout: float,
    seed: int,
    layer: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv), each [T, H, D]. The dq kernel runs first: it leaves delta for the other."""
    dq, dk, dv = (torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device) for _ in "qkv")
    delta_HT = torch.empty_like(lse_HT)
    grad_THD = grad_THD.contiguous()
    flat, keys = _FlatTables(*tables), (product_B, draw_B)
    options = (size, dropout, seed, layer)
    scales = (scale * math.log2(math.e), scale)
    qkv = (q_THD, k_THD, v_THD)
    _launch(
        "bwd_dq",
        attention_bwd_dq_kernel,
        (*qkv, out_THD, grad_THD, lse_HT, dq, delta_HT),
        qkv,
        flat,
        keys,
        options,
        scales,
    )
    _launch(
        "bwd_dkdv",
        attention_bwd_dkdv_kernel,
        (*qkv, grad_THD, lse_HT, delta_HT, dk, dv),
        qkv,
        flat,
        keys,
        options,
        scales,
    )
    return dq, dk, dv


@attention_backward.register_fake
def _(grad_THD, q_THD, k_THD, v_THD, out_THD, lse_HT, tables, product_B, draw_B, *options):
    return tuple(torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device) for _ in "qkv")


def _setup_context(ctx, inputs, output) -> None:
    q_THD, k_THD, v_THD, tables, product_B, draw_B, *ctx.options = inputs
    ctx.num_tables = len(tables)
    ctx.save_for_backward(q_THD, k_THD, v_THD, *output, product_B, draw_B, *tables)
    ctx.set_materialize_grads(True)


def _backward(ctx, grad_THD: Tensor, grad_lse_HT: Tensor):
    q_THD, k_THD, v_THD, out_THD, lse_HT, product_B, draw_B, *tables = ctx.saved_tensors
    grads = attention_backward(grad_THD, q_THD, k_THD, v_THD, out_THD, lse_HT, tables, product_B, draw_B, *ctx.options)
    return (*grads, [None] * ctx.num_tables, None, None, *(None for _ in ctx.options))


attention_forward.register_autograd(_backward, setup_context=_setup_context)


def _launch(kernel: str, function, tensors, qkv, tables: _FlatTables, keys, options, scales) -> None:
    """One grid of tiles x heads; nothing to launch without rows."""
    side, (product_B, draw_B) = tables.side(kernel), keys
    size, dropout, seed, layer = options
    num_rows, num_heads, head_dim = qkv[0].shape
    num_tiles = side.tiles_N5.shape[0]
    if num_tiles == 0 or num_heads == 0:
        return
    dtype, device = qkv[0].dtype, qkv[0].device
    tile = attention_tile(kernel, architecture(device), head_dim, dtype.itemsize, size)
    LAUNCHED.add((kernel, variant(_DTYPE_NAMES[dtype], head_dim, size, dropout > 0.0)))
    # the interpreter's bf16 arithmetic is garbage (FINDINGS.md), so it computes in fp32
    upcast = interpreting() and dtype == torch.bfloat16
    function[(num_tiles * num_heads,)](
        *tensors,
        side.own_rows,
        side.other_rows,
        side.tiles_N5,
        tables.code_T,
        tables.offset_T,
        product_B,
        draw_B,
        *(x.stride(axis) for x in qkv for axis in (0, 1)),
        num_rows,
        num_heads,
        *scales,
        seed & 0xFFFFFFFF,
        layer,
        threshold(dropout),
        1.0 / (1.0 - dropout),
        HEAD_DIM=head_dim,
        BLOCK_D=padded_head_dim(head_dim),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        DROPOUT=dropout > 0.0,
        UPCAST=upcast,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
