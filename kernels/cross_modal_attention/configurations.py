"""Every configuration in which the attention kernels are launched, for kernels/verify/aot.py."""

from m5ds.kernels.common.configuration import Configuration
from m5ds.kernels.common.tiles import ATTENTION_KERNELS, HEAD_DIMS, SIZES, attention_tile, padded_head_dim
from m5ds.kernels.cross_modal_attention.triton_backward import attention_bwd_dkdv_kernel, attention_bwd_dq_kernel
from m5ds.kernels.cross_modal_attention.triton_forward import attention_fwd_kernel

DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
_FUNCTIONS = {"fwd": attention_fwd_kernel, "bwd_dq": attention_bwd_dq_kernel, "bwd_dkdv": attention_bwd_dkdv_kernel}
_FP32_POINTERS = {"p_lse", "p_delta"}
_INT32_POINTERS = {"p_own", "p_other", "p_tiles", "p_code", "p_offset"}
_SCALARS = {
    "num_rows": "i32",
    "num_heads": "i32",
    "scale": "fp32",
    "scale_log2": "fp32",
    "seed": "i64",
    "layer": "i64",
    "threshold": "i64",
    "dropout_scale": "fp32",
}


def configurations(arch: str) -> list[Configuration]:
    """All kernels x dtypes x head dims x tile sizes x dropout on `arch`."""
    return [
        _configuration(kernel, arch, dtype, head_dim, size, dropout)
        for kernel in ATTENTION_KERNELS
        for dtype in DTYPES
        for head_dim in HEAD_DIMS
        for size in SIZES
        for dropout in (False, True)
    ]


def variant(dtype: str, head_dim: int, size: str, dropout: bool) -> str:
    """The name of a variant in the table; the tests build it from what was launched."""
    return f"{dtype} D={head_dim} {size}" + " dropout" * dropout


def _configuration(kernel: str, arch: str, dtype: str, head_dim: int, size: str, dropout: bool) -> Configuration:
    tile = attention_tile(kernel, arch, head_dim, DTYPES[dtype], size)
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "DROPOUT": dropout,
        "UPCAST": False,
    }
    names = [name for name in _FUNCTIONS[kernel].arg_names if name not in constants]
    return Configuration(
        op="cross_modal_attention",
        kernel=kernel,
        variant=variant(dtype, head_dim, size, dropout),
        function=_FUNCTIONS[kernel],
        signature={name: _type(name, dtype) for name in names},
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        # views into the flattened tables (p_own, ...) start anywhere
        divisible=frozenset(n for n in names if n.startswith(("p_", "stride_")) and n not in _INT32_POINTERS),
    )


def _type(name: str, dtype: str) -> str:
    if name.startswith("stride_"):
        return "i32"
    if name in ("p_product", "p_draw"):
        return "*i64"
    if name in _INT32_POINTERS:
        return "*i32"
    if name.startswith("p_"):
        return "*fp32" if name in _FP32_POINTERS else f"*{dtype}"
    return _SCALARS[name]
