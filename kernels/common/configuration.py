"""One launch configuration of one Triton kernel, as launches use it and as kernels/verify/aot.py compiles it.

Each op lists its own in `kernels/<op>/configurations.py`: `configurations(arch: str) -> list[Configuration]`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """Everything that decides the machine code, beside the target."""

    op: str
    kernel: str
    """Short name for the table, such as `fwd`."""
    variant: str
    """What else distinguishes it, such as `bf16 D=64 long causal`."""
    function: Any
    """The `triton.jit` function."""
    signature: dict[str, str]
    """Type of every argument that is no constexpr: `*bf16`, `*i32`, `i32`, `i64`, `fp32`, ..."""
    constants: dict[str, Any]
    """Value of every constexpr."""
    num_warps: int
    num_stages: int
    divisible: frozenset[str] = field(default=frozenset())
    """Arguments that launches pass as multiples of 16 (aligned pointers, row strides): without it, no wide loads."""
