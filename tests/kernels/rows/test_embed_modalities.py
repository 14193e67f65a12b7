"""embed_modalities: the definition against the paths that run without a GPU."""

import dataclasses

import pytest
import torch
from closeness import assert_close
from embed_cases import KINDS, all_patterns, case, gradients, named

from m5ds.kernels.common.dispatch import last_path
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities import EmbedInput, embed_modalities


def _twin(inputs: list[EmbedInput], dtype: torch.dtype) -> list[EmbedInput]:
    """The same values in another precision, as leaves."""

    def convert(item: EmbedInput) -> EmbedInput:
        values = {name: value.detach().to(dtype).requires_grad_() for name, value in item.floats().items()}
        return dataclasses.replace(item, **values)

    return [convert(item) for item in inputs]


def _content_rows(item: EmbedInput, layout: PackedLayout, m: int) -> torch.Tensor:
    """The product of every content row."""
    slab = slice(layout.slab[m], layout.slab[m + 1])
    product_R = layout.row_product_T[slab]
    return product_R if item.cls_D is None else product_R[layout.row_position_T[slab] > 0]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
def test_torch_path_agrees_with_float64_reference_on_all_presence_patterns(
    dtype: torch.dtype, tolerance: float
) -> None:
    inputs, layout = case(all_patterns(), dtype=dtype)
    exact = _twin(inputs, torch.float64)
    want, want_masks = embed_modalities(exact, layout, seed=5, eps=1e-5, path="reference")
    got, got_masks = embed_modalities(inputs, layout, seed=5, eps=1e-5)
    assert last_path("embed_modalities") == "torch"
    assert got.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(got_masks, want_masks, strict=True))
    grads = gradients(got, inputs)
    assert_close({"out": got, **grads}, {"out": want, **gradients(want, exact)}, tolerance)
    assert {grad.dtype for grad in grads.values()} == {dtype}


def test_reference_passes_gradcheck() -> None:
    inputs, layout = case(all_patterns()[[31, 0, 9]], lengths=(2, 3, 4, 2, 1), width=3, vocabulary=5)
    tensors = named(inputs)

    def function(*values: torch.Tensor) -> torch.Tensor:
        by_name = dict(zip(tensors, values, strict=True))
        fresh = [
            dataclasses.replace(item, **{name: by_name[f"{KINDS[m]}.{name}"] for name in item.floats()})
            for m, item in enumerate(inputs)
        ]
        return embed_modalities(fresh, layout, seed=1, eps=1e-5, path="reference")[0]

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("num_products", [0, 3])
def test_zero_rows_give_zero_gradient_tensors_for_every_parameter(path: str, num_products: int) -> None:
    inputs, layout = case(torch.zeros(num_products, 5, dtype=torch.bool), dtype=torch.float32)
    x_TD, masks = embed_modalities(inputs, layout, seed=0, eps=1e-5, path=path)
    assert x_TD.shape == (0, 16)
    assert [len(mask) for mask in masks] == [0] * 5
    for name, grad in gradients(x_TD, inputs).items():
        assert grad is not None, name
        assert not grad.any(), name


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_absent_modality_and_unused_mask_vector_get_zero_gradients(path: str) -> None:
    present_BM = torch.tensor([[True, True, False, False, True], [False, True, False, False, True]])
    inputs, layout = case(present_BM, dtype=torch.float32)
    x_TD, _ = embed_modalities(inputs, layout, seed=0, eps=1e-5, path=path)
    for name, grad in gradients(x_TD, inputs).items():
        assert grad is not None, name
        if name.startswith(("table.", "video.")) or name == "audio.mask_D":
            assert not grad.any(), name


def test_a_products_rows_do_not_depend_on_its_batch_mates() -> None:
    present_BM = all_patterns()[[31, 13, 27]]
    inputs, layout = case(present_BM, dtype=torch.float32)
    together, masks = embed_modalities(inputs, layout, seed=3, eps=1e-5)
    for product in range(3):
        keep = layout.row_product_T == product
        alone = PackedLayout.build(
            layout.seg_len_BM[product : product + 1],
            layout.present_BM[product : product + 1],
            layout.product_B[product : product + 1],
            layout.draw_B[product : product + 1],
        )
        own = []
        for m, item in enumerate(inputs):
            rows_N = _content_rows(item, layout, m) == product
            names = ("position_N", "unit_N", "part_N", "token_N", "projected_ND", "extra_ND")
            own.append(
                dataclasses.replace(
                    item, **{name: v[rows_N] for name in names if (v := getattr(item, name)) is not None}
                )
            )
        x_TD, own_masks = embed_modalities(own, alone, seed=3, eps=1e-5)
        assert torch.equal(x_TD, together[keep])
        for m, mask in enumerate(own_masks):
            assert torch.equal(mask, masks[m][_content_rows(inputs[m], layout, m) == product])


def test_masked_rows_hide_their_projection_and_keep_position_modality_and_geometry() -> None:
    inputs, layout = case(all_patterns()[31:], lengths=(40, 1, 1, 1, 1), dtype=torch.float32)
    x_TD, masks = embed_modalities(inputs, layout, seed=3, eps=1e-5)
    assert 0 < int(masks[0].sum()) < 40
    grads = gradients(x_TD, inputs)
    assert not grads["image.projected_ND"][masks[0]].any()
    assert grads["image.projected_ND"][~masks[0]].any(1).all()
    assert grads["image.extra_ND"].any(1).all()
    assert grads["image.position_table_PD"][:40].any(1).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_sums_over_many_rows_are_taken_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    """In bfloat16 a running sum stops growing at 256 equal terms; [CLS], positions and tokens have thousands."""
    inputs, layout = case(all_patterns()[[31] * 600], lengths=(2, 2, 2, 2, 2), width=4, dtype=dtype)
    exact = _twin(inputs, torch.float64)
    weight_D = torch.tensor([1.0, -2.0, 3.0, 0.5])
    grads, wanted = (
        torch.autograd.grad(
            (embed_modalities(side, layout, seed=5, eps=1e-5)[0] * weight_D.to(side[0].modality_D.dtype)).sum(),
            list(named(side).values()),
        )
        for side in (inputs, exact)
    )
    names = named(inputs)
    assert_close(dict(zip(names, grads, strict=True)), dict(zip(names, wanted, strict=True)), tolerance)


def test_gradients_are_bitwise_the_same_twice() -> None:
    inputs, layout = case(all_patterns(), dtype=torch.float32)
    first, second = (gradients(embed_modalities(inputs, layout, seed=5, eps=1e-5)[0], inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _broken() -> dict[str, tuple[int, dict[str, object], str]]:
    inputs, _ = case(all_patterns()[[31, 31]], dtype=torch.float32)
    image, text = inputs[0], inputs[1]
    return {
        "two sources": (0, {"token_N": image.position_N}, "projected_ND and token_N"),
        "table without tokens": (0, {"token_table_VD": text.token_table_VD}, "token_table_VD go together"),
        "mask without vector": (0, {"mask_D": None}, "mask_D is missing"),
        "vector for tokens": (1, {"mask_D": image.mask_D}, "mask_D is for continuous rows"),
        "rows missing": (0, {"projected_ND": image.projected_ND[:-1]}, "projected_ND has shape"),
        "sharded table": (1, {"token_table_VD": torch.zeros(0)}, "token_table_VD has shape"),
        "other dtype": (1, {"cls_D": text.modality_D.detach().double()}, "cls_D"),
        "other index dtype": (1, {"unit_N": text.unit_N.int()}, "unit_N must be int64"),
        "forgotten [CLS]": (1, {"cls_D": text.modality_D}, "position_N has"),
        "position past its table": (0, {"position_N": image.position_N + 9}, "its table has 9 entries"),
        "token below its table": (1, {"token_N": text.token_N - 30}, "token_N holds"),
        "other device": (1, {"norm_bias_D": text.norm_bias_D.detach().to("meta")}, "norm_bias_D is on meta"),
    }


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("seg_start_BM", lambda v: v.clone().fill_(0), "segments overlap"),
        ("seg_start_BM", lambda v: v + 1000, "run past the buffer"),
        ("lengths", lambda v: (v[0], tuple(n + 1 for n in v[1])), "its slab has"),
    ],
)
def test_a_layout_whose_segments_overlap_or_leave_the_buffer_is_refused(
    field: str, change: object, message: str
) -> None:
    inputs, layout = case(all_patterns()[[31, 31]], dtype=torch.float32)
    layout = dataclasses.replace(layout, **{field: change(getattr(layout, field))})
    with pytest.raises(ValueError, match=f"layout.*{message}"):
        embed_modalities(inputs, layout, seed=0, eps=1e-5)


@pytest.mark.parametrize("name", _broken())
def test_a_bad_input_is_named(name: str) -> None:
    inputs, layout = case(all_patterns()[[31, 31]], dtype=torch.float32)
    number, change, message = _broken()[name]
    inputs[number] = dataclasses.replace(inputs[number], **change)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        embed_modalities(inputs, layout, seed=0, eps=1e-5)
    with pytest.raises(ValueError, match="inputs has 4 modalities"):
        embed_modalities(inputs[:4], layout, seed=0, eps=1e-5)
