"""Which precision a run trains in (DESIGN 3.9): what DeepSpeed's JSON says, or under `"auto"` what every rank can do.

`"auto"` is bf16 on a GPU that has it, fp16 with loss scaling on a GPU that has not, fp32 on a CPU, where bf16 is
emulated or, with instructions for it, no faster. A run that resumes keeps its checkpoint's.
"""

from dataclasses import dataclass
from typing import Any

import torch

from m5ds.config import ConfigError
from m5ds.train import distributed

AUTO = "auto"
HALF = ("bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    name: str
    """`bf16`, `fp16` or `fp32`."""
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Device:
    """What one rank computes on."""

    name: str
    halves: tuple[str, ...]
    """Those of HALF that it computes in by itself, the better one first."""
    runs: tuple[str, ...]
    """Those of HALF that run at all, emulated where need be."""


def device_of_rank() -> Device:
    if not torch.cuda.is_available():
        return Device("no GPU", (), ("bf16",))
    halves, runs = (
        HALF if torch.cuda.is_bf16_supported(including_emulation=emulated) else ("fp16",) for emulated in (False, True)
    )
    return Device(torch.cuda.get_device_name(), halves, runs)


def choose(tree: dict[str, Any], path: str, saved: str | None) -> Precision:
    """The precision of all ranks. Collective: on unlike devices the least capable decides.

    `tree` is the JSON of the file `path` as ds_config.read has checked it; `saved` is the precision of the checkpoint
    that the run resumes from, None for a new run. ConfigError on every rank: a precision that a device lacks.
    """
    devices = distributed.gather_objects(device_of_rank())
    asked = {half: tree.get(half, {}).get("enabled", False) for half in HALF}
    explicit = next((half for half in HALF if asked[half] is True), None)
    if explicit is not None:
        _check(explicit, devices, f"{path}: {explicit}.enabled is true", 'write "auto" there')
        return Precision(explicit, f"as {path} says")
    offered = [half for half in HALF if asked[half] == AUTO]
    if not offered:
        return Precision("fp32", f"as {path} says")
    if saved == "fp32" or saved in offered:
        _check(saved, devices, f"--resume: the checkpoint was trained in {saved}", "resume it on a GPU that has it")
        return Precision(saved, "auto: as in the checkpoint")
    reason = devices[0].name
    for half in offered:
        lacking = next((device for device in devices if half not in device.halves), None)
        if lacking is None:
            return Precision(half, f"auto: {reason}")
        reason = f"{lacking.name} has no {half}" if lacking.halves else lacking.name
    return Precision("fp32", f"auto: {reason}")


def _check(half: str, devices: list[Device], what: str, remedy: str) -> None:
    for rank, device in enumerate(devices):
        if half != "fp32" and half not in device.runs:
            raise ConfigError(f"{what}, which does not run on rank {rank} ({device.name}); {remedy}")
