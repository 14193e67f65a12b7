"""The whole model on a real device against itself on the CPU in float64. Never run where written."""

import pytest
from closeness import assert_close
from model_cases import all_patterns, backward, batch_of, build, run, tiny_spec

from m5ds.kernels.common.dispatch import force_path, last_path

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("base", ["m5mmt", "scale"])
def test_losses_and_gradients_equal_the_cpu(device, tmp_path, base):
    spec = tiny_spec(tmp_path, "hidden_size=64", "num_heads=2", base=base)  # heads of 32: in the kernels' table
    batch = batch_of(spec, all_patterns())
    on_cpu, on_gpu = build(spec).double(), build(spec).to(device)
    with force_path("torch"):
        expected, expected_losses = backward(on_cpu, batch), run(on_cpu, batch).losses
    actual, losses = backward(on_gpu, batch.to(device)), run(on_gpu, batch.to(device)).losses
    for op in ("cross_modal_attention", "embed_modalities", "presence_contrastive"):
        assert last_path(op) == "triton", op
    for name, loss in expected_losses.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    # Summaries are nearly alike in a new model, so the contrastive gradients that reach a norm's bias are small
    # differences: 2e-8 of the largest norm off in the interpreter, tf32x3 products round some ten times coarser.
    assert_close({name: gradient.cpu() for name, gradient in actual.items()}, expected, 1e-3, roundings=32)


def test_an_fp16_step_is_as_close_to_float64_as_torchs_own(device, tmp_path):
    """Weights and activations in half precision, the loss scaled as the fp16 configuration would."""
    spec = tiny_spec(tmp_path, "hidden_size=64", "num_heads=2")
    batch = batch_of(spec, [[True] * 5, [True, True, False, True, False]])

    def half_gradients(where):
        model = build(spec).half().to(where)
        (run(model, batch.to(where)).loss * 256.0).backward()
        return {name: parameter.grad.cpu().double() / 256.0 for name, parameter in model.named_parameters()}

    actual = half_gradients(device)
    with force_path("torch"):
        expected, peer = backward(build(spec).double(), batch), half_gradients("cpu")
    # Summaries are nearly alike in a new model and their gradients cancel: what is left of half precision is torch's.
    largest = max(gradient.norm().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() < 3 * (peer[name] - gradient).norm() + 2e-3 * largest, name
