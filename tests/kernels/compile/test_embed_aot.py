"""Embedding and contrastive kernels as machine code: no spills, and matrix instructions where there are products."""

import pytest

from m5ds.kernels.common.configuration import Configuration
from m5ds.kernels.common.tiles import ARCHITECTURES
from m5ds.kernels.verify import aot


def _find(op: str, arch: str, kernel: str, variant: str) -> Configuration:
    return next(c for c in aot.shipped(op, arch) if (c.kernel, c.variant) == (kernel, variant))


@pytest.mark.parametrize(("arch", "mma"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA")])
def test_contrastive_tiles_reach_the_architectures_matrix_instruction_without_spills(arch: str, mma: str) -> None:
    report = aot.compile_configuration(_find("presence_contrastive", arch, "bwd_features", "bf16 D<=256"), arch)
    assert report.fault == ""
    assert report.mma == mma


@pytest.mark.parametrize(("kernel", "variant"), [("fwd", "bf16 D<=1024"), ("bwd_rows", "bf16 D<=512 tokens")])
def test_embedding_tiles_leave_room_for_two_blocks(kernel: str, variant: str) -> None:
    """A memory-bound kernel needs loads in flight: at least 16 of the 64 warps of a multiprocessor."""
    report = aot.compile_configuration(_find("embed_modalities", "sm_90", kernel, variant), "sm_90")
    assert report.fault == ""
    assert report.occupancy >= 0.25


@pytest.mark.parametrize("op", ["embed_modalities", "presence_contrastive"])
def test_no_configuration_is_listed_twice(op: str) -> None:
    for arch in ARCHITECTURES:
        names = [(c.kernel, c.variant) for c in aot.shipped(op, arch)]
        assert len(names) == len(set(names)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("op", ["embed_modalities", "presence_contrastive"])
def test_every_configuration_compiles_without_spills_on_sm_90(op: str) -> None:
    faults = [report.fault for report in aot.compile_all(["sm_90"], [op]) if report.fault]
    assert faults == []
