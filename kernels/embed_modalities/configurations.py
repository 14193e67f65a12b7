"""Every configuration in which the embedding kernels are launched, for kernels/verify/aot.py."""

import torch

from m5ds.kernels.common.configuration import Configuration
from m5ds.kernels.embed_modalities.tiles import BACKWARD_ROWS, FORWARD_ROWS, TABLE_TILE, WIDTHS, tile
from m5ds.kernels.embed_modalities.triton_backward import embed_bwd_rows_kernel, embed_bwd_table_kernel
from m5ds.kernels.embed_modalities.triton_forward import embed_fwd_kernel

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_FUNCTIONS = {
    "fwd": embed_fwd_kernel,
    "bwd_rows": embed_bwd_rows_kernel,
    "bwd_table": embed_bwd_table_kernel,
}
_POINTERS = {
    **dict.fromkeys(("p_mean", "p_rstd", "p_grad_vectors"), "*fp32"),
    **dict.fromkeys(("p_token", "p_position", "p_unit", "p_part", "p_row_product", "p_row_position"), "*i64"),
    **dict.fromkeys(("p_cls_before", "p_product", "p_draw", "p_seen"), "*i64"),
    **dict.fromkeys(("p_order", "p_first", "p_last", "p_entry"), "*i64"),
    "p_masked": "*u8",
}
_SMALL = ("mask_kind", "text", "has_mask", "has_cls", "has_part", "has_extra", "write_base", "width")


def configurations(arch: str) -> list[Configuration]:
    """Row kernels: dtypes x widths x source of the rows. Table kernel: dtypes. The same on every `arch`."""
    rows = [
        _configuration(kernel, dtype, columns, tokens)
        for kernel in ("fwd", "bwd_rows")
        for dtype in DTYPES.values()
        for columns in WIDTHS
        for tokens in (False, True)
    ]
    return rows + [_configuration("bwd_table", dtype, TABLE_TILE.columns, False) for dtype in DTYPES.values()]


def variant(dtype: str, columns: int, tokens: bool) -> str:
    """The name of a variant in the table; the tests build it from what was launched."""
    return f"{dtype} D<={columns}" + " tokens" * tokens


def _configuration(kernel: str, dtype: str, columns: int, tokens: bool) -> Configuration:
    entry = tile(columns) if kernel != "bwd_table" else TABLE_TILE
    constants: dict[str, int | bool] = {"ROWS": entry.rows, "COLUMNS": entry.columns}
    if kernel != "bwd_table":
        constants["PROGRAM_ROWS"] = FORWARD_ROWS if kernel == "fwd" else BACKWARD_ROWS
        constants["TOKENS"] = tokens
    names = [name for name in _FUNCTIONS[kernel].arg_names if name not in constants]
    return Configuration(
        op="embed_modalities",
        kernel=kernel,
        variant=variant(dtype, columns, tokens),
        function=_FUNCTIONS[kernel],
        signature={name: _type(name, dtype) for name in names},
        constants=constants,
        num_warps=entry.num_warps,
        num_stages=1,
        divisible=frozenset(name for name in names if name.startswith("p_") or name == "width"),
    )


def _type(name: str, dtype: str) -> str:
    if name.startswith("p_"):
        return _POINTERS.get(name, f"*{dtype}")
    if name == "eps":
        return "fp32"
    return "i32" if name in _SMALL else "i64"
