"""Every configuration in which the dropout kernel is launched, for kernels/verify/aot.py."""

from m5ds.kernels.common.configuration import Configuration
from m5ds.kernels.hidden_dropout.tiles import CALLS, DTYPES, NUM_WARPS, ROWS
from m5ds.kernels.hidden_dropout.triton_kernels import hidden_dropout_kernel

_CONSTANTS = {"ROWS": ROWS, "CALLS": CALLS}


def configurations(arch: str) -> list[Configuration]:
    """One per dtype, the same on every `arch`; both directions launch it."""
    names = [name for name in hidden_dropout_kernel.arg_names if name not in _CONSTANTS]
    return [
        Configuration(
            op="hidden_dropout",
            kernel="both",
            variant=dtype,
            function=hidden_dropout_kernel,
            signature={name: _type(name, dtype) for name in names},
            constants=dict(_CONSTANTS),
            num_warps=NUM_WARPS,
            num_stages=1,
            divisible=frozenset(name for name in names if name.startswith("p_") or name == "width"),
        )
        for dtype in DTYPES.values()
    ]


def _type(name: str, dtype: str) -> str:
    if name in ("p_x", "p_out"):
        return f"*{dtype}"
    if name.startswith("p_"):
        return "*i64"
    return "fp32" if name == "scale" else "i64"
