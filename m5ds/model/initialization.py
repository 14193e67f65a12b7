"""Initial weights that depend on (seed, parameter name) only, whole or partitioned by ZeRO-3.

`post_init()` under `deepspeed.zero.Init` silently initialises empty shards (FINDINGS.md). Here every parameter is
filled by name from its own generator, gathered first where it is partitioned, so plain and ZeRO-3 runs start from the
same values.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def generator_for(seed: int, name: str) -> torch.Generator:
    """The CPU generator of one parameter."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def is_partitioned(parameter: nn.Parameter) -> bool:
    """True where DeepSpeed ZeRO-3 keeps only this rank's shard of the parameter."""
    return hasattr(parameter, "ds_id")


def gathered(parameters: list[nn.Parameter], writes: bool) -> AbstractContextManager[None]:
    """A context in which the parameters are whole; with `writes`, rank 0's values are kept when it ends."""
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if writes else None)


def initialize(model: nn.Module, seed: int, std: float) -> None:
    """Fill every parameter: norms' weights with 1, biases with 0, the rest with N(0, std) unless its module says
    otherwise.

    A module may define `initial_value(parameter_name) -> float | None` to give one of its own parameters a constant,
    and `initial_name` to stand for its path in the names that key the values of its parameters.
    Tied parameters are visited once, under their first name.
    """
    for name, module, own_name, parameter in _owned(model):
        if parameter.device.type == "meta":
            continue
        constant = _constant(module, own_name)
        with torch.no_grad(), gathered([parameter], writes=True):
            if constant is not None:
                parameter.fill_(constant)
            else:
                parameter.copy_(normal(parameter.shape, seed, name, std))


def normal(shape: torch.Size, seed: int, name: str, std: float) -> Tensor:
    """float32 [shape] of N(0, std) for the parameter of that name, drawn on the CPU."""
    # Not torch.randn: zero.Init replaces it by one that draws on the rank's GPU and rounds to bf16.
    generator = generator_for(seed, name)
    return torch.normal(0.0, std, tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    seen: set[int] = set()
    renamed: dict[str, str] = {}
    for path, module in model.named_modules():
        above, _, own = path.rpartition(".")
        given = getattr(module, "initial_name", None)
        renamed[path] = _joined(renamed.get(above, ""), own) if given is None else given
        for own_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield _joined(renamed[path], own_name), module, own_name, parameter


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _constant(module: nn.Module, name: str) -> float | None:
    own: Callable[[str], float | None] | None = getattr(module, "initial_value", None)
    given = own(name) if own is not None else None
    if given is not None:
        return given
    if name.endswith("bias"):
        return 0.0
    if isinstance(module, nn.LayerNorm) or name.endswith("norm_weight"):
        return 1.0
    return None
