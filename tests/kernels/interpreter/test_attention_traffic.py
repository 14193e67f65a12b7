"""Counted traffic of the attention kernels against the closed form; stores exactly once; wrong layouts are caught."""

import dataclasses

import pytest
import torch
from attention_cases import VISIBILITY, M, make_layout, make_qkv, random_matrix, run_with_gradients

from m5ds.kernels.cross_modal_attention import cross_modal_attention, triton_path
from m5ds.kernels.cross_modal_attention.planning import tables
from m5ds.kernels.cross_modal_attention.planning.costs import attention_cost
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec
from m5ds.kernels.verify.traffic import count_traffic

KERNELS = {
    "fwd": "attention_fwd_kernel",
    "bwd_dq": "attention_bwd_dq_kernel",
    "bwd_dkdv": "attention_bwd_dkdv_kernel",
}
LENGTHS = [[3, 9, 0, 18, 1], [0, 5, 0, 0, 2], [0] * M, [1, 0, 0, 0, 0]]


def counted(layout, visibility, dtype=torch.float16, heads=1, **options):
    with count_traffic() as traffic:
        run_with_gradients(
            lambda q, k, v: cross_modal_attention(q, k, v, layout, visibility, path="triton", **options),
            make_qkv(layout.num_rows, heads, 32, dtype),
        )
    return traffic


@pytest.mark.parametrize("name", ["identity", "others", "none"])
def test_every_output_element_is_written_exactly_once(name):
    options = {"causal": (0, 1, 0, 1, 0), "updates": (1, 1, 0, 1, 1)}
    traffic = counted(make_layout(LENGTHS), VISIBILITY[name], heads=2, **options)
    assert traffic.of(KERNELS["fwd"]).written_once("p_out", "p_lse")
    assert traffic.of(KERNELS["bwd_dq"]).written_once("p_dq", "p_delta")
    assert traffic.of(KERNELS["bwd_dkdv"]).written_once("p_dk", "p_dv")


@pytest.mark.parametrize("size", ["short", "long"])
@pytest.mark.parametrize("visibility", [VISIBILITY["identity"], VISIBILITY["others"], random_matrix(1)])
def test_counted_traffic_equals_the_closed_form(visibility, size, monkeypatch):
    monkeypatch.setattr(tables, "_choose_size", lambda *_, **__: size)
    layout, spec = make_layout(LENGTHS), AttentionSpec.build(M, visibility, None, None)
    traffic = counted(layout, visibility)
    for kernel, function in KERNELS.items():
        cost = attention_cost(kernel, layout, spec, heads=1, head_dim=32, itemsize=2, arch="sm_80", size=size)
        launch = traffic.of(function)
        table_bytes = sum(launch.loaded[name] for name in ("p_tiles", "p_own", "p_other", "p_code"))
        assert launch.total_loaded - table_bytes + launch.total_stored == cost.tensor_bytes
        assert table_bytes == cost.table_bytes
        assert launch.dot_flops == cost.flops


def test_absent_and_invisible_segments_cost_nothing():
    """Two modalities of one tile each: all four tile pairs, the two visible ones, the one that is present."""
    everything = counted(make_layout([[32, 32, 0, 0, 0]]), VISIBILITY["all"])
    invisible = counted(make_layout([[32, 32, 0, 0, 0]]), VISIBILITY["identity"])
    absent = counted(make_layout([[32, 0, 0, 0, 0]]), VISIBILITY["all"])
    for function in KERNELS.values():
        assert everything.of(function).dot_flops == 4 * absent.of(function).dot_flops
        assert invisible.of(function).dot_flops == 2 * absent.of(function).dot_flops
        assert invisible.of(function).total_loaded == 2 * absent.of(function).total_loaded


def test_a_causal_modality_alone_skips_the_tiles_that_it_cannot_see(monkeypatch):
    monkeypatch.setattr(tables, "_choose_size", lambda *_, **__: "short")
    layout = make_layout([[0, 64, 0, 0, 0]])
    full, causal = (counted(layout, VISIBILITY["identity"], causal=(0, flag, 0, 0, 0)) for flag in (0, 1))
    for function in KERNELS.values():
        assert causal.of(function).dot_flops < full.of(function).dot_flops


@pytest.mark.parametrize("table", ["own_rows", "other_rows"])
def test_a_row_list_that_leaves_the_buffer_is_caught(table, monkeypatch):
    """The hook must see a wrong layout: triton-viz's sanitizer did not (FINDINGS.md)."""
    layout = make_layout(LENGTHS)
    build = triton_path.tables_for

    def wrong(*arguments, **options):
        built = build(*arguments, **options)
        side = built.queries["fwd"]
        rows = getattr(side, table).clone()
        rows[rows == rows.max()] = layout.num_rows + 10_000
        return dataclasses.replace(built, queries=built.queries | {"fwd": dataclasses.replace(side, **{table: rows})})

    monkeypatch.setattr(triton_path, "tables_for", wrong)
    with pytest.raises(Exception, match="outside every argument"):
        counted(layout, VISIBILITY["all"])


def test_a_row_written_twice_is_counted(monkeypatch):
    layout = make_layout([[4, 0, 0, 0, 0]])
    build = triton_path.tables_for

    def wrong(*arguments, **options):
        built = build(*arguments, **options)
        side = built.queries["fwd"]
        rows = side.own_rows.clone()
        rows[1] = rows[0]
        return dataclasses.replace(built, queries=built.queries | {"fwd": dataclasses.replace(side, own_rows=rows)})

    monkeypatch.setattr(triton_path, "tables_for", wrong)
    launch = counted(layout, VISIBILITY["all"]).of(KERNELS["fwd"])
    assert not launch.written_once("p_out")
    assert launch.writes["p_out"][:, 0, 0].tolist() == [2, 0, 1, 1]
