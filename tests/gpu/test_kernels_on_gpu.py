"""The Triton kernels on a real device against the float64 reference, gradient by gradient. Never run where written."""

import dataclasses

import attention_cases
import contrastive_cases
import embed_cases
import pytest
import torch
from closeness import assert_close

from m5ds.kernels.common.dispatch import last_path
from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.kernels.embed_modalities import embed_modalities
from m5ds.kernels.presence_contrastive import presence_contrastive

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ODD_LENGTHS = [[1, 37, 63, 70, 111], [37, 1, 0, 111, 63], *attention_cases.all_patterns((3, 5, 4, 2, 1))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("name", attention_cases.VISIBILITY)
def test_attention_agrees_with_the_reference(device, name, dim, dtype):
    layout = attention_cases.make_layout(ODD_LENGTHS)
    inputs = attention_cases.make_qkv(layout.num_rows, 2, dim, dtype)
    options = {"dropout": 0.2, "seed": 3, "layer": 1, "causal": (0, 1, 0, 0, 0)}

    def op(layout, path=None):
        matrix = attention_cases.VISIBILITY[name]
        return lambda q, k, v: cross_modal_attention(q, k, v, layout, matrix, path=path, **options)

    exact = attention_cases.run_with_gradients(op(layout, "reference"), tuple(x.double() for x in inputs))
    actual = attention_cases.run_with_gradients(op(layout.to(device)), tuple(x.to(device) for x in inputs))
    again = attention_cases.run_with_gradients(op(layout.to(device)), tuple(x.to(device) for x in inputs))
    assert last_path("cross_modal_attention") == "triton"
    assert all(torch.equal(actual[key], again[key]) for key in actual)
    assert_close({key: value.cpu() for key, value in actual.items()}, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_embedding_agrees_with_the_reference(device, dtype):
    inputs, layout = embed_cases.case(embed_cases.all_patterns(), width=96, dtype=dtype)

    def moved(item, change):
        tensors = {
            field.name: change(value)
            for field in dataclasses.fields(item)
            if isinstance(value := getattr(item, field.name), torch.Tensor)
        }
        return dataclasses.replace(item, **tensors)

    def double(tensor):
        return tensor.detach().double().requires_grad_() if tensor.is_floating_point() else tensor

    def there(tensor):
        return tensor.detach().to(device).requires_grad_(tensor.is_floating_point())

    exact, on_gpu = [moved(item, double) for item in inputs], [moved(item, there) for item in inputs]
    want, want_masks = embed_modalities(exact, layout, seed=5, eps=1e-5, path="reference")
    got, got_masks = embed_modalities(on_gpu, layout.to(device), seed=5, eps=1e-5)
    assert last_path("embed_modalities") == "triton"
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got_masks, want_masks, strict=True))
    actual = {name: value.cpu() for name, value in {"out": got, **embed_cases.gradients(got, on_gpu)}.items()}
    assert_close(actual, {"out": want, **embed_cases.gradients(want, exact)}, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_contrastive_agrees_with_the_reference(device, dtype):
    pairs = contrastive_cases.PAIRS_ALL
    present = embed_cases.all_patterns().repeat(8, 1)
    arguments = contrastive_cases.case(present, slice(5, 200), width=70, num_pairs=len(pairs), dtype=dtype)
    exact = {k: v.detach().double().requires_grad_() if v.is_floating_point() else v for k, v in arguments.items()}
    on_gpu = {k: v.detach().to(device).requires_grad_(v.is_floating_point()) for k, v in arguments.items()}
    want = presence_contrastive(**exact, pairs=pairs, path="reference")
    got = presence_contrastive(**on_gpu, pairs=pairs)
    assert last_path("presence_contrastive") == "triton"
    actual = {name: value.cpu() for name, value in {"loss": got, **contrastive_cases.gradients(got, on_gpu)}.items()}
    assert_close(actual, {"loss": want, **contrastive_cases.gradients(want, exact)}, TOLERANCE[dtype])
