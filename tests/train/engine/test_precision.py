"""Precision follows the devices unless the JSON says it; all ranks agree, and a resumed run keeps its own."""

from pathlib import Path

import pytest
import torch

from m5ds.config import ConfigError
from m5ds.train.engine import ds_config, precision
from m5ds.train.engine.precision import Device, choose

ROOT = Path(__file__).resolve().parents[3]
CPU = Device("no GPU", (), ("bf16",))
H100 = Device("NVIDIA H100", ("bf16", "fp16"), ("bf16", "fp16"))
V100 = Device("Tesla V100", ("fp16",), ("bf16", "fp16"))
P100 = Device("Tesla P100", ("fp16",), ("fp16",))
BOTH = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """Sets every rank's device."""

    def use(*devices: Device) -> None:
        monkeypatch.setattr(precision.distributed, "gather_objects", lambda own: list(devices))

    return use


@pytest.mark.parametrize("name", ["zero3", "zero3_offload", "zero2"])
@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([CPU], "fp32 (auto: no GPU)"),
        ([H100, H100], "bf16 (auto: NVIDIA H100)"),
        ([V100], "fp16 (auto: Tesla V100 has no bf16)"),
        ([H100, V100], "fp16 (auto: Tesla V100 has no bf16)"),
        ([V100, H100], "fp16 (auto: Tesla V100 has no bf16)"),
        ([H100, V100, CPU], "fp32 (auto: no GPU)"),
    ],
)
def test_shipped_files_follow_the_least_capable_device(name: str, devices, expected: str, on) -> None:
    ds = ds_config.read(ROOT / f"configs/{name}.json")
    on(*devices)
    assert str(choose(ds.tree, ds.path, None)) == expected


@pytest.mark.parametrize(
    ("tree", "device", "expected"),
    [
        ({"bf16": {"enabled": True}}, CPU, "bf16"),
        ({"bf16": {"enabled": True}}, V100, "bf16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": "auto"}}, CPU, "bf16"),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": True}}, H100, "fp16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": False}}, H100, "fp32"),
        ({}, H100, "fp32"),
        ({"bf16": {"enabled": "auto"}}, V100, "fp32"),
        ({"fp16": {"enabled": "auto"}}, H100, "fp16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": "auto"}}, CPU, "fp32"),
    ],
)
def test_an_explicit_value_is_obeyed_and_only_what_is_auto_is_offered(tree, device, expected: str, on) -> None:
    on(device)
    assert choose(tree, "x.json", None).name == expected


def test_what_cannot_run_is_one_line_that_names_file_key_rank_and_device(on) -> None:
    on(H100, CPU)
    with pytest.raises(ConfigError, match=r"x\.json: fp16\.enabled is true, .* rank 1 \(no GPU\); write \"auto\""):
        choose({"fp16": {"enabled": True}}, "x.json", None)
    on(P100)
    with pytest.raises(ConfigError, match=r"x\.json: bf16\.enabled is true, .* rank 0 \(Tesla P100\)"):
        choose({"bf16": {"enabled": True}}, "x.json", None)


@pytest.mark.parametrize(
    ("saved", "device"), [("bf16", CPU), ("fp32", H100), ("fp16", H100), ("bf16", V100), ("fp32", CPU)]
)
def test_a_resumed_run_keeps_its_precision_on_another_device(saved: str, device: Device, on) -> None:
    on(device)
    assert choose(BOTH, "x.json", saved).name == saved


def test_a_checkpoint_in_what_no_device_here_runs_is_refused(on) -> None:
    on(CPU)
    with pytest.raises(ConfigError, match=r"--resume: the checkpoint was trained in fp16, .*\(no GPU\)"):
        choose(BOTH, "x.json", "fp16")
    on(P100)
    with pytest.raises(ConfigError, match="trained in bf16"):
        choose(BOTH, "x.json", "bf16")


def test_emulated_bf16_does_not_count_as_having_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says of a V100 that bf16 is supported unless it is asked about emulation."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision.device_of_rank() == V100
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision.device_of_rank().halves == ("bf16", "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.device_of_rank() == CPU
