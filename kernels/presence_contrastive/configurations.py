"""Every configuration in which the contrastive kernels are launched, for kernels/verify/aot.py."""

import torch

from m5ds.kernels.common.configuration import Configuration
from m5ds.kernels.presence_contrastive import triton_kernels as kernels
from m5ds.kernels.presence_contrastive.tiles import KERNELS, WIDTHS, tile

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
FUNCTIONS = {
    "fwd": kernels.contrastive_fwd_kernel,
    "bwd_features": kernels.contrastive_bwd_features_kernel,
    "bwd_keys": kernels.contrastive_bwd_keys_kernel,
}
_OF_INPUTS = ("p_features", "p_keys", "p_grad_features", "p_grad_keys")
_POINTERS = {
    **dict.fromkeys(("p_present", "p_keys_present"), "*u8"),
    **dict.fromkeys(("p_query_modality", "p_key_modality", "p_key_order", "p_query_order"), "*i32"),
    **dict.fromkeys(("p_key_count", "p_query_count"), "*i32"),
    "p_positive": "*i64",
}


def configurations(arch: str) -> list[Configuration]:
    """Kernels x dtypes x columns; the forward has one for all widths."""
    return [
        _configuration(kernel, arch, dtype, columns)
        for kernel in KERNELS
        for dtype in DTYPES
        for columns in (WIDTHS[dtype.itemsize] if kernel != "fwd" else WIDTHS[dtype.itemsize][:1])
    ]


def variant(kernel: str, dtype: torch.dtype, columns: int) -> str:
    """The name of a variant in the table; the tests build it from what was launched."""
    return DTYPES[dtype] if kernel == "fwd" else f"{DTYPES[dtype]} D<={columns}"


def _configuration(kernel: str, arch: str, dtype: torch.dtype, columns: int) -> Configuration:
    entry = tile(kernel, arch, dtype.itemsize, columns)
    constants = {"BLOCK_B": entry.block_b, "BLOCK_C": entry.block_c, "BLOCK_K": entry.block_k, "UPCAST": False}
    if kernel != "fwd":
        constants["BLOCK_D"] = entry.block_d
    names = [name for name in FUNCTIONS[kernel].arg_names if name not in constants]
    return Configuration(
        op="presence_contrastive",
        kernel=kernel,
        variant=variant(kernel, dtype, columns),
        function=FUNCTIONS[kernel],
        signature={name: _type(name, DTYPES[dtype]) for name in names},
        constants=constants,
        num_warps=entry.num_warps,
        num_stages=entry.num_stages,
        divisible=frozenset(name for name in names if name.startswith("p_") or name == "width"),
    )


def _type(name: str, dtype: str) -> str:
    if name in _OF_INPUTS:
        return f"*{dtype}"
    if name.startswith("p_"):
        return _POINTERS.get(name, "*fp32")
    return "i32" if name == "width" else "i64"
