"""embed_modalities' Triton kernels in the interpreter (TRITON_INTERPRET=1, a process of its own) against float64."""

import dataclasses

import pytest
import torch
from closeness import assert_close
from embed_cases import KINDS, all_patterns, case, gradients, named

from m5ds.kernels.common import philox
from m5ds.kernels.common.dispatch import force_path, last_path
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities import EmbedInput, embed_modalities
from m5ds.kernels.embed_modalities.configurations import configurations
from m5ds.kernels.embed_modalities.triton_path import LAUNCHED, embed_backward, embed_forward

_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def _agree(
    inputs: list[EmbedInput], layout: PackedLayout, dtype: torch.dtype, seed: int = 5, eps: float = 1e-5
) -> None:
    exact = [
        dataclasses.replace(
            item, **{name: value.detach().double().requires_grad_() for name, value in item.floats().items()}
        )
        for item in inputs
    ]
    want, want_masks = embed_modalities(exact, layout, seed=seed, eps=eps, path="reference")
    got, got_masks = embed_modalities(inputs, layout, seed=seed, eps=eps, path="triton")
    assert last_path("embed_modalities") == "triton"
    assert got.dtype == dtype
    for m, kind in enumerate(KINDS):
        assert torch.equal(got_masks[m], want_masks[m]), kind
    grads = gradients(got, inputs)
    assert_close({"out": got, **grads}, {"out": want, **gradients(want, exact)}, _TOLERANCE[dtype])
    assert {grad.dtype for grad in grads.values()} == {dtype}


@pytest.mark.parametrize("dtype", list(_TOLERANCE))
def test_every_gradient_agrees_on_all_presence_patterns(dtype: torch.dtype) -> None:
    inputs, layout = case(all_patterns(), width=24, dtype=dtype)
    _agree(inputs, layout, dtype)


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1, 1), (37, 63, 70, 111, 2)])
def test_every_gradient_agrees_on_odd_lengths(lengths: tuple[int, ...]) -> None:
    inputs, layout = case(all_patterns()[[31]], lengths=lengths, width=70, dtype=torch.float32)
    _agree(inputs, layout, torch.float32, eps=0.1)  # an epsilon that shows beside a variance of 1


@pytest.mark.parametrize("pattern", [2, 8])
def test_a_product_with_a_single_token(pattern: int) -> None:
    """One text token; one video row behind its [CLS] row."""
    inputs, layout = case(all_patterns()[[pattern]], lengths=(1, 1, 1, 1, 1), dtype=torch.float32)
    assert layout.num_rows == (1 if pattern == 2 else 2)
    _agree(inputs, layout, torch.float32)


def test_every_gradient_agrees_on_wide_rows() -> None:
    inputs, layout = case(all_patterns()[[31]], lengths=(2, 2, 2, 1, 1), width=130, dtype=torch.float32)
    _agree(inputs, layout, torch.float32)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_masking_nothing_and_everything(ratio: float) -> None:
    inputs, layout = case(all_patterns()[[31, 31]], ratio=ratio, dtype=torch.float32)
    _agree(inputs, layout, torch.float32)


def test_mask_bits_equal_the_references_at_extreme_keys() -> None:
    """Hashes of both signs, the evaluation's draw, the largest seed: every bit of the counter and key takes part."""
    inputs, layout = case(all_patterns()[[31] * 8], lengths=(5, 9, 6, 4, 1), dtype=torch.float32)
    hashes = torch.tensor([-1, 0, 1, 2**63 - 1, -(2**63), 2**32, -(2**32), 12345], dtype=torch.int64)
    layout = dataclasses.replace(layout, product_B=hashes, draw_B=torch.full((8,), philox.EVALUATION_DRAW))
    _agree(inputs, layout, torch.float32, seed=2**32 - 1)


@pytest.mark.parametrize("num_products", [0, 3])
def test_zero_rows_give_zero_gradient_tensors(num_products: int) -> None:
    inputs, layout = case(torch.zeros(num_products, 5, dtype=torch.bool), dtype=torch.float32)
    x_TD, masks = embed_modalities(inputs, layout, seed=0, eps=1e-5, path="triton")
    assert x_TD.shape == (0, 16)
    assert [len(mask) for mask in masks] == [0] * 5
    for name, grad in gradients(x_TD, inputs).items():
        assert grad is not None, name
        assert grad.shape == named(inputs)[name].shape, name
        assert not grad.any(), name


def test_absent_modalities_get_zero_gradients() -> None:
    inputs, layout = case(torch.tensor([[True, True, False, False, True]]), dtype=torch.float32)
    x_TD, _ = embed_modalities(inputs, layout, seed=0, eps=1e-5, path="triton")
    for name, grad in gradients(x_TD, inputs).items():
        if name.startswith(("table.", "video.")) or name == "audio.mask_D":
            assert grad is not None, name
            assert not grad.any(), name


def test_gradients_are_bitwise_the_same_twice_and_under_checkpointing() -> None:
    inputs, layout = case(all_patterns()[[31, 21, 10]], dtype=torch.float32)

    def run() -> torch.Tensor:
        return embed_modalities(inputs, layout, seed=5, eps=1e-5, path="triton")[0]

    first, second = gradients(run(), inputs), gradients(run(), inputs)
    checkpointed = gradients(torch.utils.checkpoint.checkpoint(run, use_reentrant=False), inputs)
    for name, grad in first.items():
        assert torch.equal(grad, second[name]), name
        assert torch.equal(grad, checkpointed[name]), name


def test_frozen_tables_and_shared_tables() -> None:
    """One token table for text and table rows sums both gradients; a frozen parameter asks for none."""
    inputs, layout = case(all_patterns()[[31, 6]], dtype=torch.float32)
    inputs[2] = dataclasses.replace(inputs[2], token_table_VD=inputs[1].token_table_VD)
    inputs[0] = dataclasses.replace(inputs[0], position_table_PD=inputs[0].position_table_PD.detach())
    table = inputs[1].token_table_VD
    grads = [
        torch.autograd.grad(embed_modalities(inputs, layout, seed=5, eps=1e-5, path=path)[0].pow(3).sum(), table)[0]
        for path in ("torch", "triton")
    ]
    assert_close(*grads, 1e-5)


def test_operator_passes_opcheck() -> None:
    inputs, layout = case(all_patterns()[[31, 5]], lengths=(3, 2, 2, 2, 1), dtype=torch.float32)
    with force_path("triton"):
        arguments = _captured(inputs, layout)
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(embed_forward, arguments)
    x_TD, *saved = embed_forward(*arguments)
    arguments = (torch.ones_like(x_TD), *arguments[:6], *saved)
    torch.library.opcheck(embed_backward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_compilation_gives_the_same_gradients() -> None:
    inputs, layout = case(all_patterns()[[31, 5]], lengths=(3, 2, 2, 2, 1), dtype=torch.float32)

    def run() -> torch.Tensor:
        return embed_modalities(inputs, layout, seed=5, eps=1e-5, path="triton")[0] * 2

    compiled = gradients(torch.compile(run, backend="aot_eager")(), inputs)
    for name, grad in gradients(run(), inputs).items():
        assert torch.equal(grad, compiled[name]), name


def _captured(inputs: list[EmbedInput], layout: PackedLayout) -> tuple[object, ...]:
    """The arguments with which the public function calls the operator."""
    from m5ds.kernels.embed_modalities import triton_path

    calls: list[tuple[object, ...]] = []

    def record(*arguments: object) -> object:
        calls.append(arguments)
        return embed_forward(*arguments)

    triton_path.embed_forward, original = record, triton_path.embed_forward
    try:
        embed_modalities(inputs, layout, seed=1, eps=1e-5)
    finally:
        triton_path.embed_forward = original
    return calls[0]


def test_widths_and_dtypes_outside_the_table_are_named() -> None:
    inputs, layout = case(all_patterns()[[31]], dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        embed_modalities(inputs, layout, seed=0, eps=1e-5, path="triton")
    inputs, layout = case(all_patterns()[[31]], lengths=(1, 1, 1, 1, 1), width=2049, dtype=torch.float32)
    with pytest.raises(ValueError, match="2049"):
        embed_modalities(inputs, layout, seed=0, eps=1e-5, path="triton")


def test_every_launch_is_among_the_compiled_configurations() -> None:
    inputs, layout = case(all_patterns()[[31]], dtype=torch.float32)
    gradients(embed_modalities(inputs, layout, seed=0, eps=1e-5, path="triton")[0], inputs)
    assert {kernel for kernel, _ in LAUNCHED} == {"fwd", "bwd_rows", "bwd_table"}
    assert {(c.kernel, c.variant) for c in configurations("sm_90")} >= LAUNCHED
