"""The whole model on a real device against itself on the CPU in float64. Never run where written."""

import pytest
import torch
from closeness import assert_close
from model_cases import all_patterns, backward, batch_of, build, run, tiny_spec

from m5ds.kernels.dispatch import force_path, last_path

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("base", ["m5mmt", "scale"])
def test_losses_and_gradients_equal_the_cpu(tmp_path, base):
    spec = tiny_spec(tmp_path, "hidden_size=64", "num_heads=2", base=base)  # heads of 32: in the kernels' table
    batch = batch_of(spec, all_patterns())
    on_cpu, on_gpu = build(spec).double(), build(spec).cuda()
    with force_path("torch"):
        expected, expected_losses = backward(on_cpu, batch), run(on_cpu, batch).losses
    actual, losses = backward(on_gpu, batch.to("cuda")), run(on_gpu, batch.to("cuda")).losses
    for op in ("cross_modal_attention", "embed_modalities", "presence_contrastive"):
        assert last_path(op) == "triton", op
    for name, loss in expected_losses.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    # Summaries are nearly alike in a new model, so the contrastive gradients that reach a norm's bias are small
    # differences: 2e-8 of the largest norm off in the interpreter, tf32x3 products round some ten times coarser.
    assert_close({name: gradient.cpu() for name, gradient in actual.items()}, expected, 1e-3, roundings=32)
