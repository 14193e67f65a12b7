"""Attention kernels as machine code for GPUs that are not here: no spills, matrix instructions, faults that show."""

import dataclasses

import pytest

from m5ds.kernels.common.tiles import ARCHITECTURES, ATTENTION_KERNELS, HEAD_DIMS, SIZES
from m5ds.kernels.cross_modal_attention.configurations import configurations
from m5ds.kernels.verify import aot


def find(arch, kernel, variant):
    return next(c for c in configurations(arch) if (c.kernel, c.variant) == (kernel, variant))


@pytest.mark.parametrize(("arch", "mma"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA")])
def test_long_tiles_reach_the_architectures_matrix_instruction_without_spills(arch, mma):
    report = aot.compile_configuration(find(arch, "fwd", "bf16 D=64 long"), arch)
    assert report.fault == ""
    assert report.mma == mma
    assert 0 < report.occupancy <= 1


def test_a_tile_that_spills_is_a_fault():
    greedy = find("sm_80", "bwd_dkdv", "bf16 D=64 long dropout")
    greedy = dataclasses.replace(greedy, constants=greedy.constants | {"BLOCK_M": 64, "BLOCK_N": 64}, num_warps=4)
    report = aot.compile_configuration(greedy, "sm_80")
    assert report.spilled_bytes > 0
    assert "spills" in report.fault


def test_a_kernel_that_does_not_compile_is_a_fault():
    broken = find("sm_80", "fwd", "bf16 D=32 short")
    broken = dataclasses.replace(broken, constants=broken.constants | {"BLOCK_D": 48})
    report = aot.compile_configuration(broken, "sm_80")
    assert report.error
    assert report.fault == report.error


def test_more_shared_memory_than_a_multiprocessor_has_is_a_fault():
    report = aot.Report("sm_80", "op", "fwd", "", num_warps=4, num_stages=1, registers=64, shared_bytes=200_000)
    assert "do not fit" in report.fault
    assert dataclasses.replace(report, shared_bytes=0).occupancy == 0.5


def test_the_command_prints_a_row_a_configuration_and_exits_1_on_faults(capsys, monkeypatch):
    arguments = ["--targets", "sm_80", "--op", "cross_modal_attention", "--match", "fwd bf16 D=32 short", "--jobs", "1"]
    assert aot.main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("target")
    assert len(rows) == 3
    assert aot.main([*arguments, "--markdown"]) == 0
    assert "2 configurations, 0 faults; triton" in capsys.readouterr().out
    monkeypatch.setattr(
        aot, "compile_configuration", lambda c, t: aot.Report(t, c.op, c.kernel, c.variant, 4, 1, 255, 8)
    )
    assert aot.main(arguments) == 1
    assert "spills 8 bytes" in capsys.readouterr().err
    assert aot.main(["--match", "no such configuration"]) == 1


def test_every_combination_of_the_table_is_shipped_once():
    for arch in ARCHITECTURES:
        names = [(c.kernel, c.variant) for c in configurations(arch)]
        assert len(names) == len(set(names)) == len(ATTENTION_KERNELS) * 3 * len(HEAD_DIMS) * len(SIZES) * 2


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_common_configurations_do_not_spill(arch):
    reports = list(aot.compile_all([arch], ["cross_modal_attention"], "bf16 D=64", jobs=2))
    assert len(reports) == 12
    assert [report.fault for report in reports] == [""] * 12
