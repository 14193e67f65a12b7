"""The Triton attention kernels in the interpreter, against the float64 reference, gradient by gradient.

Every tensor that the op allocates starts as NaN (conftest.py), so a row that no program writes shows.
"""

import pytest
import torch
from attention_cases import (
    VISIBILITY,
    M,
    all_patterns,
    make_layout,
    make_qkv,
    random_matrix,
    run_with_gradients,
)
from closeness import assert_close
from torch.utils.checkpoint import checkpoint

from m5ds.kernels.common.dispatch import last_path
from m5ds.kernels.common.tiles import ATTENTION_KERNELS
from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.kernels.cross_modal_attention.planning import tables
from m5ds.kernels.cross_modal_attention.planning.tables import build_tables
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec
from m5ds.kernels.cross_modal_attention.triton_path import LAUNCHED, attention_backward, attention_forward

MATRICES = VISIBILITY | {f"random_{seed}": random_matrix(seed) for seed in range(2)}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
OPTIONS = {"causal": (0, 1, 0, 1, 0), "updates": (1, 1, 0, 1, 1), "dropout": 0.3, "seed": 2**31 + 5, "layer": 7}


def check(layout, visibility, dtype=torch.float32, heads=1, dim=32, **options):
    """Triton against float64 on the same (rounded) inputs."""
    inputs = make_qkv(layout.num_rows, heads, dim, dtype)

    def op(path):
        return lambda q, k, v: cross_modal_attention(q, k, v, layout, visibility, path=path, **options)

    expected = run_with_gradients(op("reference"), tuple(x.double() for x in inputs))
    actual = run_with_gradients(op("triton"), inputs)
    assert last_path("cross_modal_attention") == "triton"
    assert actual["out"].dtype == actual["dv"].dtype == dtype
    assert_close(actual, expected, TOLERANCE[dtype])


def test_gradients_equal_the_reference_over_all_presence_patterns():
    check(make_layout(all_patterns((3, 5, 4, 2, 1))), VISIBILITY["all"])


@pytest.mark.parametrize("name", MATRICES)
def test_gradients_equal_the_reference_under_every_visibility(name):
    check(make_layout([[3, 9, 0, 18, 1], [0, 5, 0, 0, 2]]), MATRICES[name])


@pytest.mark.parametrize("name", ["identity", "random_1"])
def test_causal_updates_and_dropout_equal_the_reference(name):
    layout = make_layout([[3, 37, 4, 0, 1], [0, 5, 0, 6, 0], [0] * M])
    check(layout, MATRICES[name], heads=1 + (name == "identity"), **OPTIONS)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=NAMES.get)
def test_every_dtype_meets_its_tolerance_at_odd_lengths(dtype):
    check(make_layout([[1, 37, 0, 63, 0]]), VISIBILITY["all"], dtype=dtype)


@pytest.mark.parametrize("dim", [64, 96, 128])
def test_every_head_dim_of_the_table(dim):
    check(make_layout([[3, 17, 0, 0, 5]]), VISIBILITY["all"], dim=dim, dtype=torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
def test_every_preset_at_odd_lengths_and_all_patterns(name):
    check(make_layout([[1, 37, 63, 70, 111], *all_patterns((3, 5, 4, 2, 1))]), MATRICES[name])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=NAMES.get)
@pytest.mark.parametrize("name", ["all", "random_1"])
def test_every_option_and_dtype_at_odd_lengths(name, dtype):
    check(make_layout([[1, 37, 63, 70, 111], [37, 1, 0, 0, 63]]), MATRICES[name], dtype=dtype, **OPTIONS)


@pytest.mark.parametrize("lengths", [[], [[0] * M] * 2, [[0, 1, 0, 0, 0]]], ids=["no products", "no rows", "one token"])
def test_degenerate_batches(lengths):
    layout = make_layout(lengths)
    for visibility in (VISIBILITY["all"], VISIBILITY["none"]):
        inputs = make_qkv(layout.num_rows, 1, 32, torch.float32)

        def op(q, k, v, visibility=visibility):
            return cross_modal_attention(q, k, v, layout, visibility, path="triton", causal=(1,) * M)

        result = run_with_gradients(op, inputs)
        # a row that sees only itself copies its value, and its scores have no gradient; one that sees nothing is zero
        seen = float(visibility[1][1])
        expected = {"out": inputs[2] * seen, "dq": inputs[0] * 0, "dk": inputs[1] * 0, "dv": inputs[3] * seen}
        for name, value in expected.items():
            assert result[name].shape == value.shape
            assert torch.allclose(result[name], value, atol=1e-5), name


@pytest.mark.parametrize("size", ["short", "long"])
def test_both_tile_sizes_agree_with_the_reference(size, monkeypatch):
    monkeypatch.setattr(tables, "_choose_size", lambda *_, **__: size)
    layout = make_layout([[9, 70, 3, 0, 0], [0, 5, 0, 6, 2]])
    check(layout, random_matrix(0), dtype=torch.float16, **OPTIONS)
    assert ("bwd_dkdv", f"fp16 D=32 {size} dropout") in LAUNCHED


def test_strided_views_of_one_projection_are_read_in_place():
    layout = make_layout([[3, 4, 0, 2, 0]])
    generator = torch.Generator().manual_seed(0)
    results = []
    qkv = torch.randn(layout.num_rows, 3, 2, 32, generator=generator, requires_grad=True)
    for path in ("triton", "reference"):
        out = cross_modal_attention(*qkv.unbind(1), layout, VISIBILITY["all"], path=path)
        results.append({"out": out.detach(), "dqkv": torch.autograd.grad(out.square().sum(), qkv)[0]})
    assert_close(*results, 1e-5)


def test_the_same_inputs_give_the_same_bits():
    layout = make_layout([[9, 20, 3, 0, 0]])
    inputs = make_qkv(layout.num_rows, 1, 32, torch.float16)

    def op(q, k, v):
        return cross_modal_attention(q, k, v, layout, random_matrix(1), path="triton", **OPTIONS)

    first, second = run_with_gradients(op, inputs), run_with_gradients(op, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_large_scores_stay_finite_and_exact():
    layout = make_layout([[5, 20, 0, 0, 0]])
    q, k, v, _ = make_qkv(layout.num_rows, 1, 32, torch.float32)
    outs = [
        cross_modal_attention(q * 100, k, v, layout, VISIBILITY["all"], causal=(0, 1, 0, 0, 0), path=path)
        for path in ("triton", "reference")
    ]
    assert_close(*outs, 1e-5)


def test_a_nan_in_one_product_stays_there():
    layout = make_layout([[2, 3, 0, 0, 0], [2, 4, 0, 0, 0], [1, 2, 0, 0, 0]])
    poisoned = layout.row_product_T == 1
    q, k, v, grad = make_qkv(layout.num_rows, 1, 32, torch.float32)
    for x in (q, k, v):
        x[poisoned] = float("nan")

    def op(q, k, v):
        return cross_modal_attention(q, k, v, layout, VISIBILITY["all"], path="triton")

    result = run_with_gradients(op, (q, k, v, grad))
    assert all(bool(x[~poisoned].isfinite().all()) for x in result.values())


def test_activation_checkpointing_gives_the_same_bits():
    layout = make_layout([[3, 4, 0, 2, 0]])
    inputs = make_qkv(layout.num_rows, 1, 32, torch.float32)

    def op(q, k, v):
        return cross_modal_attention(q, k, v, layout, VISIBILITY["all"], path="triton", **OPTIONS)

    plain = run_with_gradients(op, inputs)
    again = run_with_gradients(lambda q, k, v: checkpoint(op, q, k, v, use_reentrant=False), inputs)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize(("dim", "dtype", "message"), [(48, torch.float32, "head dim"), (32, torch.float64, "float32")])
def test_what_the_tile_table_lacks_is_refused_before_a_launch(dim, dtype, message):
    layout = make_layout([[2, 3, 0, 0, 1]])
    with pytest.raises(ValueError, match=f"q_THD.*{message}"):
        cross_modal_attention(*make_qkv(layout.num_rows, 1, dim, dtype)[:3], layout, VISIBILITY["all"], path="triton")


def operator_arguments(layout):
    spec = AttentionSpec.build(M, VISIBILITY["all"], None, None)
    tables = build_tables(layout, spec, arch="sm_80", head_dim=32, itemsize=4, size="short")
    sides = (tables.queries["fwd"], tables.queries["bwd_dq"], tables.keys)
    flat = [x for side in sides for x in (side.own_rows, side.other_rows, side.tiles_N5)]
    return [*flat, tables.code_T, tables.offset_T], layout.product_B, layout.draw_B, "short", 0.2, 0.0, 1, 0


@pytest.mark.parametrize("lengths", [[[2, 3, 0, 0, 1]], []], ids=["rows", "no rows"])
def test_operators_pass_opcheck(lengths):
    layout = make_layout(lengths)
    q, k, v, grad = make_qkv(layout.num_rows, 1, 32, torch.float32)
    rest = operator_arguments(layout)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(attention_forward, (*leaves, *rest), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(attention_forward, (*leaves, *rest), test_utils="test_autograd_registration")
    out, lse = attention_forward(q.detach(), k.detach(), v.detach(), *rest)
    saved = (grad, q.detach(), k.detach(), v.detach(), out, lse)
    torch.library.opcheck(attention_backward, (*saved, *rest), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
def test_compiled_function_gives_the_same_gradients():
    layout = make_layout([[2, 3, 0, 0, 1]])
    inputs = make_qkv(layout.num_rows, 1, 32, torch.float32)

    def op(q, k, v):
        return cross_modal_attention(q * 2, k, v, layout, VISIBILITY["all"], path="triton") + 1

    compiled = torch.compile(op, backend="aot_eager")
    assert_close(run_with_gradients(compiled, inputs), run_with_gradients(op, inputs), 1e-7)


def test_every_launch_is_recorded():
    """Each process of interpreter tests ends by looking its launches up in verify/aot.py's list (conftest.py)."""
    check(make_layout([[3, 4, 0, 2, 0]]), VISIBILITY["all"])
    assert {(kernel, "fp32 D=32 short") for kernel in ATTENTION_KERNELS} <= LAUNCHED


def test_uninitialised_memory_is_poisoned_in_these_tests():
    assert torch.empty(5).isnan().all()
    assert torch.zeros(3).new_empty(5).isnan().all()


def test_a_padded_dense_implementation_agrees():
    """Every product padded to all slots, a boolean mask over absent rows: what a model without packing computes."""
    lengths = torch.tensor([3, 7, 4, 2, 5])
    present = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    layout = make_layout((present * lengths).tolist())
    base_M, num_slots = lengths.cumsum(0) - lengths, int(lengths.sum())
    slot_T = layout.row_product_T * num_slots + base_M[layout.row_modality_T] + layout.row_position_T
    exists_BL = torch.zeros(4 * num_slots, dtype=torch.bool).index_fill(0, slot_T, True).view(4, num_slots)
    modality_L = torch.arange(M).repeat_interleave(lengths)
    for name in ("others", "random_1"):
        seen_BLL = torch.tensor(MATRICES[name])[modality_L][:, modality_L] & exists_BL[:, None]

        def padded(q, k, v, seen_BLL=seen_BLL):
            q_BHLD, k_BHLD, v_BHLD = (
                x.new_zeros(4 * num_slots, 1, 32).index_copy(0, slot_T, x).view(4, num_slots, 1, 32).transpose(1, 2)
                for x in (q, k, v)
            )
            mask = (seen_BLL | ~seen_BLL.any(-1, keepdim=True))[:, None]
            out = torch.nn.functional.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=mask)
            out = out.masked_fill(~seen_BLL.any(-1)[:, None, :, None], 0.0)
            return out.transpose(1, 2).reshape(-1, 1, 32).index_select(0, slot_T)

        def packed(q, k, v, name=name):
            return cross_modal_attention(q, k, v, layout, MATRICES[name], path="triton")

        inputs = make_qkv(layout.num_rows, 1, 32, torch.float32)
        assert_close(run_with_gradients(packed, inputs), run_with_gradients(padded, inputs), 1e-5)
