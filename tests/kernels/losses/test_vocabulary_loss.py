"""masked_cross_entropy: chunks with recomputation against the dense definition."""

import pytest
import torch
from closeness import assert_close

from m5ds.kernels.common.dispatch import force_path, last_path
from m5ds.kernels.masked_cross_entropy import masked_cross_entropy


def _case(rows: int, dtype: torch.dtype, width: int = 32, vocabulary: int = 301) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, width), (vocabulary, width), (vocabulary,))
    floats = [torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3 for shape in shapes]
    target_K = torch.randint(vocabulary, (rows,), generator=generator)
    return *(value.to(dtype).requires_grad_() for value in floats), target_K


@pytest.mark.parametrize("rows", [1, 37, 63, 70, 111])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
def test_every_gradient_agrees_with_the_float64_reference(dtype: torch.dtype, tolerance: float, rows: int) -> None:
    arguments = _case(rows, dtype)
    exact = [value.detach().double().requires_grad_() for value in arguments[:3]]
    want = masked_cross_entropy(*exact, arguments[3], path="reference")
    got = masked_cross_entropy(*arguments, chunk_rows=37)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    names = ("loss", "hidden", "weight", "bias")
    grads = torch.autograd.grad(got * 0.1, arguments[:3])
    assert {grad.dtype for grad in grads} == {dtype}
    wanted = torch.autograd.grad(want * 0.1, exact)
    assert_close(
        dict(zip(names, (got, *grads), strict=True)), dict(zip(names, (want, *wanted), strict=True)), tolerance
    )


def test_weights_of_logits_and_losses_have_the_references_gradients() -> None:
    *floats, target_K = _case(37, torch.float64)
    for number in (1, 2):
        weight_K = torch.rand(37, generator=torch.Generator().manual_seed(number), dtype=torch.float64) + 0.2
        floats.append(weight_K.requires_grad_())
    names = ("hidden", "weight", "bias", "logit weight", "loss weight")
    grads = {}
    for path in ("torch", "reference"):
        hidden_KD, weight_VD, bias_V, logit_weight_K, loss_weight_K = floats
        loss = masked_cross_entropy(
            hidden_KD,
            weight_VD,
            bias_V,
            target_K,
            chunk_rows=16,
            logit_weight_K=logit_weight_K,
            loss_weight_K=loss_weight_K,
            path=path,
        )
        grads[path] = dict(zip(names, torch.autograd.grad(loss * 0.1, floats), strict=True))
    assert_close(grads["torch"], grads["reference"], 1e-12)


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_gradcheck(path: str) -> None:
    *floats, target_K = _case(5, torch.float64, width=3, vocabulary=4)
    assert torch.autograd.gradcheck(
        lambda h, w, b: masked_cross_entropy(h, w, b, target_K, chunk_rows=2, path=path), tuple(floats)
    )


def test_zero_rows_give_zero_gradient_tensors() -> None:
    arguments = _case(0, torch.float32)
    loss = masked_cross_entropy(*arguments)
    assert loss.item() == 0.0
    for grad, value in zip(torch.autograd.grad(loss, arguments[:3]), arguments[:3], strict=True):
        assert grad.shape == value.shape
        assert not grad.any()


def test_frozen_tensors_get_no_gradient() -> None:
    hidden_KD, weight_VD, bias_V, target_K = _case(7, torch.float32)
    loss = masked_cross_entropy(hidden_KD, weight_VD.detach(), bias_V.detach(), target_K)
    (got,) = torch.autograd.grad(loss, hidden_KD)
    (want,) = torch.autograd.grad(masked_cross_entropy(hidden_KD, weight_VD, bias_V, target_K), hidden_KD)
    assert torch.equal(got, want)


def test_it_can_be_differentiated_twice_through_a_retained_graph() -> None:
    arguments = _case(9, torch.float32)
    loss = masked_cross_entropy(*arguments)
    first, second = (torch.autograd.grad(loss, arguments[:3], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("wrapper", ["checkpoint", "compile"])
def test_checkpointing_and_compilation_keep_the_gradients(wrapper: str) -> None:
    *floats, target_K = _case(9, torch.float32)

    def run(*values: torch.Tensor) -> torch.Tensor:
        return masked_cross_entropy(*values, target_K, chunk_rows=4)

    if wrapper == "checkpoint":
        loss = torch.utils.checkpoint.checkpoint(run, *floats, use_reentrant=False)
    else:
        loss = torch.compile(run, backend="aot_eager")(*floats)
    want = torch.autograd.grad(run(*floats), floats)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, floats), want, strict=True))


def test_logits_of_one_chunk_at_a_time_are_held() -> None:
    """Counted, not timed: no tensor of rows x vocabulary is saved for the backward."""
    arguments = _case(111, torch.float32)
    saved: list[int] = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        saved.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        masked_cross_entropy(*arguments, chunk_rows=16)
    assert max(saved) <= max(value.numel() for value in arguments) < 111 * 301


def test_forcing_triton_runs_the_torch_path() -> None:
    with force_path("triton"):
        masked_cross_entropy(*_case(3, torch.float32))
    assert last_path("masked_cross_entropy") == "torch"


@pytest.mark.parametrize(
    ("number", "change", "name"),
    [
        (0, lambda v: v[0], "hidden_KD"),
        (1, lambda v: v[:, :5], "weight_VD"),
        (1, lambda v: v.detach().new_empty(0), "weight_VD"),
        (1, lambda v: v.double(), "weight_VD"),
        (2, lambda v: v[:5], "bias_V"),
        (3, lambda v: v[:5], "target_K"),
        (3, lambda v: v.int(), "target_K"),
        (3, lambda v: v.to("meta"), "target_K"),
        (3, lambda v: v - 100, "target_K holds"),
        (3, lambda v: v + 301, "target_K holds"),
    ],
)
def test_a_bad_argument_is_named(number: int, change: object, name: str) -> None:
    arguments = list(_case(7, torch.float32))
    arguments[number] = change(arguments[number])
    with pytest.raises(ValueError, match=name):
        masked_cross_entropy(*arguments)
    for name in ("logit_weight_K", "loss_weight_K"):
        with pytest.raises(ValueError, match=name):
            masked_cross_entropy(*_case(7, torch.float32), **{name: torch.ones(6)})
    with pytest.raises(ValueError, match="chunk_rows"):
        masked_cross_entropy(*_case(7, torch.float32), chunk_rows=0)
