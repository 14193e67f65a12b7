"""Training through the interpreted kernels follows training through the torch path (Liger's convergence tier)."""

import pytest
import torch
from model_cases import batch_of, build, run, tiny_spec

from m5ds.kernels.common.dispatch import force_path, last_path

STEPS = 20
PRESENT = [
    [True] * 5,
    [True, True, True, False, False],
    [False, True, True, True, True],
    [True, False, True, True, False],
]


def loss_curve(spec, path: str) -> list[float]:
    """Total loss of every step, fp32: the same products, other masks each step.

    AdamW divides by the gradient's own size: where a gradient should be zero it would make full steps of what rounding
    leaves, so this also shows that the kernels leave none that matters (some pairs hold a single product here).
    """
    model = build(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    with force_path(path):
        for step in range(STEPS):
            batch = batch_of(spec, PRESENT, draw=step)
            loss = run(model, batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_twenty_steps_follow_the_torch_path(tmp_path):
    spec = tiny_spec(
        tmp_path, "hidden_size=64", "num_heads=2", "blocks.unimodal.repeat=1", "objectives.contrastive.pairs=all"
    )
    expected = loss_curve(spec, "torch")
    actual = loss_curve(spec, "triton")
    assert last_path("cross_modal_attention") == last_path("presence_contrastive") == "triton"
    assert expected[-1] < 0.9 * max(expected)  # it learns; step 0 happens to mask little
    assert actual == pytest.approx(expected, rel=1e-4)
