"""The CPU path against the reference, gradient by gradient."""

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

from m5ds.kernels.common.dispatch import force_path, last_path
from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.kernels.cross_modal_attention.planning import plan
from m5ds.kernels.cross_modal_attention.planning.plan import plan_for
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec

MATRICES = VISIBILITY | {f"random_{seed}": random_matrix(seed) for seed in range(4)}
LAYOUTS = {
    "all_patterns": all_patterns((3, 5, 4, 2, 1)) + [[1, 0, 0, 0, 0], [0, 7, 2, 0, 9]],
    "one_token": [[0, 1, 0, 0, 0]],
    "no_products": [],
    "no_rows": [[0] * M] * 3,
    "causal_only": [[0, n, 0, 0, 0] for n in (1, 5, 2, 9)],
}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def both(layout, visibility, dtype=torch.float64, heads=2, dim=8, reference_dtype=None, **options):
    inputs = make_qkv(layout.num_rows, heads, dim, dtype)
    results = {}
    for path in ("torch", "reference"):
        cast = tuple(x.to(torch.float64) for x in inputs) if path == "reference" else inputs

        def op(q, k, v, path=path):
            return cross_modal_attention(q, k, v, layout, visibility, path=path, **options)

        results[path] = run_with_gradients(op, cast)
    return results["torch"], results["reference"]


OPTIONS = (
    {},
    {"causal": (0, 1, 0, 0, 0)},
    {"causal": (1,) * M, "updates": (1, 0, 1, 1, 0)},
    {"dropout": 0.3, "seed": 3, "layer": 2, "causal": (0, 0, 1, 0, 0)},
)


@pytest.mark.parametrize("rows", LAYOUTS)
@pytest.mark.parametrize("name", MATRICES)
def test_gradients_equal_the_reference(name, rows):
    layout = make_layout(LAYOUTS[rows])
    for options in OPTIONS:
        actual, expected = both(layout, MATRICES[name], **options)
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("grouping", ["separate_groups", "joint_group"])
@pytest.mark.parametrize("name", MATRICES)
def test_both_groupings_equal_the_reference_whatever_the_cost_model_prefers(name, grouping, monkeypatch):
    groups_of = getattr(plan, grouping)
    monkeypatch.setattr(plan, "separate_groups", groups_of)
    monkeypatch.setattr(plan, "joint_group", groups_of)
    layout = make_layout(LAYOUTS["all_patterns"][4::4])
    for options in OPTIONS:
        actual, expected = both(layout, MATRICES[name], **options)
        assert_close(actual, expected, 1e-12)


def test_queries_that_see_nearly_all_rows_share_one_masked_sequence_a_product():
    """Where each modality sees the four others, a sequence a modality would gather every key row four times."""
    layout = make_layout([[16, 20, 24, 8, 12]] * 8)
    built = plan_for(layout, AttentionSpec.build(M, VISIBILITY["others"], None, None), 128)
    (bucket,) = built.buckets
    assert bucket.mask_P1QK.shape == (1, 1, 80, 80)
    assert built.keys.forward.index_N.numel() == layout.num_rows
    identity = plan_for(layout, AttentionSpec.build(M, VISIBILITY["identity"], None, None), 128)
    assert all(bucket.num_keys <= 24 for bucket in identity.buckets)


def test_a_masked_sequence_leaves_out_rows_that_see_nothing():
    layout = make_layout([[4, 4, 4, 4, 4], [3, 0, 0, 0, 0], [0, 5, 6, 0, 0]])
    built = plan_for(layout, AttentionSpec.build(M, VISIBILITY["others"], None, None), 1 << 20)
    assert 1 not in torch.cat([bucket.product_P for bucket in built.buckets])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_meets_its_tolerance_at_odd_lengths(dtype):
    layout = make_layout([[1, 37, 63, 70, 111], [37, 1, 0, 111, 63], [0, 63, 37, 0, 1]])
    for name in ("identity", "all", "random_1"):
        actual, expected = both(layout, MATRICES[name], dtype=dtype, dim=32)
        assert actual["out"].dtype == actual["dq"].dtype == dtype
        assert_close(actual, expected, DTYPES[dtype])


def test_padded_buckets_are_used_and_agree():
    """Ragged lengths must meet the padding and masking code: fewer calls than distinct lengths."""
    lengths = [[9, 5 + b % 7, 3 + b % 5, 0, 2] for b in range(24)]
    layout = make_layout(lengths)
    plan = plan_for(layout, AttentionSpec.build(M, VISIBILITY["all"], None, None), 16)
    assert len(plan.buckets) < len({sum(row) for row in lengths})
    assert any(bucket.mask_P1QK is not None for bucket in plan.buckets)
    assert_close(*both(layout, VISIBILITY["all"]), 1e-12)


def test_equal_lengths_share_one_call():
    layout = make_layout([[17, 17, 17, 17, 17]] * 6)
    for name in ("identity", "all"):
        plan = plan_for(layout, AttentionSpec.build(M, VISIBILITY[name], None, None), 128)
        assert len(plan.buckets) == 1
        assert plan.buckets[0].mask_P1QK is None


def test_a_nan_in_one_product_stays_there():
    layout = make_layout([[2, 3, 0, 0, 0], [2, 4, 0, 0, 0], [1, 2, 0, 0, 0]])
    poisoned = layout.row_product_T == 1
    q, k, v, grad = make_qkv(layout.num_rows, 1, 4, torch.float32)
    for x in (q, k, v):
        x[poisoned] = float("nan")

    def op(q, k, v):
        return cross_modal_attention(q, k, v, layout, VISIBILITY["all"], path="torch")

    result = run_with_gradients(op, (q, k, v, grad))
    assert all(bool(x[~poisoned].isfinite().all()) for x in result.values())


def test_the_same_inputs_give_the_same_bits():
    layout = make_layout([[9, 5 + b % 7, 3 + b % 5, 0, 2] for b in range(8)])
    inputs = make_qkv(layout.num_rows, 2, 16, torch.float32)

    def op(q, k, v):
        return cross_modal_attention(q, k, v, layout, random_matrix(2), dropout=0.1, path="torch")

    first, second = run_with_gradients(op, inputs), run_with_gradients(op, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rows_not_updated_are_zero_and_get_no_query_gradient():
    layout = make_layout([[3, 4, 0, 2, 0]] * 2)
    actual, _ = both(layout, VISIBILITY["all"], updates=(1, 0, 1, 1, 1))
    text = slice(layout.slab[1], layout.slab[2])
    assert actual["out"][text].abs().max() == actual["dq"][text].abs().max() == 0
    assert actual["dk"][text].abs().min() > 0


def test_strided_views_of_one_projection_are_accepted():
    layout = make_layout([[3, 4, 0, 2, 0]] * 2)
    qkv = torch.randn(layout.num_rows, 3, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = []
    for path in ("torch", "reference"):
        out = cross_modal_attention(*qkv.unbind(1), layout, VISIBILITY["all"], path=path)
        results.append({"out": out.detach(), "dqkv": torch.autograd.grad(out.square().sum(), qkv)[0]})
    assert_close(*results, 1e-5)


def test_activation_checkpointing_gives_the_same_bits():
    layout = make_layout([[3, 4, 0, 2, 0], [1, 0, 5, 0, 0]])
    inputs = make_qkv(layout.num_rows, 2, 8, torch.float32)

    def op(q, k, v):
        return cross_modal_attention(q, k, v, layout, VISIBILITY["others"], dropout=0.2, seed=1, path="torch")

    plain = run_with_gradients(op, inputs)
    again = run_with_gradients(lambda q, k, v: checkpoint(op, q, k, v, use_reentrant=False), inputs)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.slow
def test_a_compiled_caller_gets_the_same_gradients():
    """The torch path breaks the graph (its plan is host code); what is around it is still compiled."""
    layout = make_layout([[3, 4, 0, 2, 0]])
    inputs = make_qkv(layout.num_rows, 2, 8, torch.float32)

    def op(q, k, v):
        return cross_modal_attention(q * 2, k, v, layout, VISIBILITY["all"], path="torch") + 1

    compiled = torch.compile(op, backend="aot_eager")
    assert_close(run_with_gradients(compiled, inputs), run_with_gradients(op, inputs), 1e-7)


def test_dispatch_takes_the_torch_path_on_a_cpu_and_obeys_force_path():
    layout = make_layout([[1, 2, 0, 0, 0]])
    inputs = make_qkv(3, 1, 4, torch.float32)[:3]
    cross_modal_attention(*inputs, layout, VISIBILITY["all"])
    assert last_path("cross_modal_attention") == "torch"
    with force_path("reference"):
        cross_modal_attention(*inputs, layout, VISIBILITY["all"])
    assert last_path("cross_modal_attention") == "reference"
    with pytest.raises(ValueError, match="path must be one of"):
        cross_modal_attention(*inputs, layout, VISIBILITY["all"], path="cuda")
