"""What the contrastive kernels move, counted in the interpreter: who writes what how often, and what absence saves."""

import torch
from contrastive_cases import PAIRS_CHAIN, case, gradients
from embed_cases import all_patterns

from m5ds.kernels.presence_contrastive import presence_contrastive
from m5ds.kernels.verify.traffic import count_traffic


def test_every_contrastive_output_is_written_once() -> None:
    present_CM = all_patterns()[torch.randperm(32, generator=torch.Generator().manual_seed(4))].repeat(3, 1)
    arguments = case(present_CM, slice(3, 80), num_pairs=4, dtype=torch.float32)
    with count_traffic() as traffic:
        loss_P2 = presence_contrastive(**arguments, pairs=PAIRS_CHAIN, path="triton")
        gradients(loss_P2, arguments)
    assert [launch.kernel for launch in traffic.launches] == [
        "contrastive_fwd_kernel",
        "contrastive_bwd_features_kernel",
        "contrastive_bwd_keys_kernel",
    ]
    assert all(launch.written_once() for launch in traffic.launches)


def test_absent_products_cost_the_contrastive_kernel_nothing() -> None:
    """Keys are read for the products that have both modalities: a quarter of them, a quarter of the dot products."""
    flops = []
    for share in (1.0, 0.25):
        present_CM = torch.ones(256, 5, dtype=torch.bool)
        present_CM[64:] = share == 1.0
        arguments = case(present_CM, slice(0, 32), num_pairs=1, dtype=torch.float32)
        with torch.no_grad(), count_traffic() as traffic:
            presence_contrastive(**arguments, pairs=((0, 1),), path="triton")
        flops.append(traffic.of("contrastive_fwd_kernel").dot_flops)
    assert flops[1] * 4 == flops[0]
