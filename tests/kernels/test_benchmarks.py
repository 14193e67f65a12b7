"""The benchmark harness: it verifies before it times, appends to one CSV, and states bounds."""

import csv
import dataclasses
import importlib

import pytest
import torch

from m5ds.kernels.benchmarks import contrastive_memory, cross_modal_attention, run
from m5ds.kernels.benchmarks.case import Case, Estimate, Provider, Work, percentiles, verify
from m5ds.kernels.benchmarks.contrastive_memory import Allocated, counted_bytes
from m5ds.kernels.benchmarks.cross_modal_attention import cases
from m5ds.kernels.benchmarks.plot import draw
from m5ds.kernels.benchmarks.results import Row, append_csv, append_rows
from m5ds.kernels.benchmarks.roofline import Ceilings, measure_ceilings
from m5ds.kernels.benchmarks.tables import fill_page, tables_of
from m5ds.kernels.benchmarks.timing import MODES

CPU = torch.device("cpu")


def provider(name: str, factor: float) -> Provider:
    return Provider(name, lambda x: x * factor, (torch.ones(4, requires_grad=True),), torch.ones(4))


def test_an_empty_file_gets_the_header(tmp_path):
    path = tmp_path / "new.csv"
    path.touch()
    append_csv(path, {"a": 1})
    assert path.read_text().split() == ["a", "1"]


def test_a_provider_that_disagrees_is_named():
    case = Case("op", {"n": 4}, [provider("ours", 2.0), provider("same", 2.0), provider("peer", 2.1)], tolerance=1e-3)
    with pytest.raises(ValueError, match="peer: output differs"):
        verify(case)
    verify(dataclasses.replace(case, providers=case.providers[:2]))


def test_the_quick_attention_case_verifies_and_states_its_traffic():
    (case,) = cases(CPU, "quick")
    assert len(case.providers) == 3
    verify(case)
    assert [estimate.launch.split()[0] for estimate in case.estimates] == ["fwd", "bwd_dq", "bwd_dkdv"]
    assert all(estimate.bytes >= estimate.minimum_bytes > 0 for estimate in case.estimates)


def test_roofline_takes_the_slower_of_memory_and_compute():
    assert Estimate("fwd", 0, 3_350_000, 1).bound_us("H100-SXM") == (pytest.approx(1.0), "memory")
    assert Estimate("fwd", 0, 1, 989_000_000).bound_us("H100-SXM") == (pytest.approx(1.0), "compute")


def test_percentiles_do_not_depend_on_the_order():
    assert percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)


def test_rows_are_appended_under_one_header_and_drawn(tmp_path, capsys):
    case = Case("op", {"n": 4}, [provider("ours", 2.0), provider("peer", 2.0)], 1e-3, [Estimate("fwd", 10, 5, 7)])
    path = tmp_path / "results.csv"
    for _ in range(2):
        append_rows(path, run.run_case(case, CPU, repeats=3, ceilings=Ceilings(1e9, 1e9)), CPU)
    run.print_estimates(case)
    assert "GPU closed form fwd" in capsys.readouterr().out
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(MODES)
    assert {row["provider"] for row in rows} == {"ours", "peer"}
    assert all(row["device"] and row["threads"] and "torch" in row["versions"] for row in rows)
    assert {row["roofline_share"] for row in rows} == {""}  # this case does not say what its problem asks for
    assert [picture.suffix for picture in draw(path, tmp_path / "plots")] == [".png"]


def test_every_module_of_the_folder_is_an_op_or_known():
    assert run.ops() == ["contrastive_memory", "cross_modal_attention", "embed_modalities", "presence_contrastive"]


def test_memory_of_the_triton_path_is_linear_and_of_the_dense_one_is_not(monkeypatch):
    """Bytes that ops allocate, launches left out; the real ones run in processes of their own."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert counted_bytes(2048) == pytest.approx(8 * counted_bytes(256), rel=0.02)
    dense = {}
    for num_products in (256, 2048):
        with Allocated() as mode:
            contrastive_memory._run("reference", *contrastive_memory._problem(num_products, CPU))
        dense[num_products] = mode.bytes
    assert dense[2048] > 50 * dense[256]


def test_a_run_becomes_the_tables_of_a_page(tmp_path):
    """From CSV rows to Markdown between the page's marks, in place and again; the latest of equal rows counts."""
    parameters = {"lengths": "paper", "presence": 0.5, "products": 8}
    rows = [
        Row("cross_modal_attention", name, "both", parameters | {"visibility": visibility}, 0.0, time, 0.0, 0.0)
        for visibility, times in {"identity": (9.0, 20.0, 40.0), "all": (22.0, 20.0, 40.0)}.items()
        for name, time in zip(("packed (torch path)", "padded SDPA", "padded unfused"), times, strict=True)
    ]
    path, page = tmp_path / "cpu.csv", tmp_path / "page.md"
    append_rows(path, [dataclasses.replace(rows[0], p50_ms=1.0), *rows], CPU)
    packing = tmp_path / "packing.csv"
    values = ("paper", "50%", 1, 2, "0.5", "1.0", "2.00", "2.00", "1.00", 64, 2, 1, 1, "2.13", "some cpu", "2026-11-22")
    names = [
        "lengths",
        "presence",
        "packed_rows",
        "padded_rows",
        "packed_s",
        "padded_s",
        "speed_up",
        "token_ratio",
        "share",
    ]
    names += ["width", "products", "repeats", "threads", "torch", "cpu", "date"]
    packing.write_text(",".join(names) + "\n" + ",".join(map(str, values)) + "\n")
    found = tables_of([path, packing])
    assert "| paper, 8 products | 50% | 9.0 | 22.0 |  | 20.0 | 40.0 | 1.10 |" in found["attention-cpu"]
    assert "| paper | 50% | 0.5 | 1.0 | 2.00 | 2.00 | 1.00 |" in found["packing"]
    marks = "<!-- table {} -->\nold\n<!-- end of table -->\n"
    page.write_text("head\n" + "".join(marks.format(name) for name in found) + "foot\n")
    fill_page(page, found)
    once = page.read_text()
    fill_page(page, found)
    assert "old" not in once
    assert page.read_text() == once
    assert once.startswith("head\n")
    assert once.endswith("foot\n")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no '<!-- table"):
        fill_page(page, found)


def test_a_file_that_is_no_benchmark_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="it lacks device"):
        tables_of([path])


def test_a_rows_roofline_is_the_slower_of_its_bytes_and_its_products():
    row = Row("op", "ours", "forward", {}, 1.0, 4.0, 5.0, 0.0)
    ceilings = Ceilings(bytes_per_second=2e9, flops_per_second=1e12)
    moved = run.with_roofline(row, Work(bytes=4_000_000, flops=10**9), ceilings)
    assert (moved.bound_ms, moved.roofline_share) == (pytest.approx(2.0), pytest.approx(0.5))
    assert (moved.copy_gb_s, moved.matmul_tflop_s, moved.gflop) == pytest.approx((2.0, 1.0, 1.0))
    multiplied = run.with_roofline(row, Work(bytes=4_000_000, flops=3 * 10**9), ceilings)
    assert multiplied.bound_ms == pytest.approx(3.0)
    assert run.with_roofline(row, None, ceilings) == row


def test_every_timed_op_states_its_work_by_mode_and_it_grows_with_the_batch():
    """Forward moves inputs and output, and both is the sum: no less than what the tensors hold."""
    for op in ("cross_modal_attention", "embed_modalities", "presence_contrastive"):
        case = next(iter(importlib.import_module(f"m5ds.kernels.benchmarks.{op}").cases(CPU, "quick")))
        assert set(case.work) == set(MODES)
        forward, backward, both = (case.work[mode] for mode in ("forward", "backward", "both"))
        assert backward.bytes > forward.bytes >= case.providers[0].grad.nbytes
        assert backward.flops >= forward.flops
        assert (both.bytes, both.flops) == (forward.bytes + backward.bytes, forward.flops + backward.flops)


def test_attention_counts_the_products_of_the_visible_rows_alone():
    (case,) = cases(CPU, "quick")
    heads, width = 12, 64
    layout = cross_modal_attention.make_layout("paper", 0.5, 2)
    pairs = sum(sum(lengths) ** 2 for lengths in layout.lengths)  # the quick case's rows see all of their product
    assert case.work["forward"].flops == 2 * 2 * pairs * heads * width
    assert case.work["forward"].bytes == 4 * 4 * layout.num_rows * heads * width


def test_ceilings_are_measured_rates():
    ceilings = measure_ceilings(CPU, torch.float32)
    assert ceilings.bytes_per_second > 1e7
    assert ceilings.flops_per_second > 1e7


def test_rows_are_never_appended_under_other_columns(tmp_path):
    """A CSV of an older version would else hold values under the wrong names, silently."""
    path = tmp_path / "old.csv"
    path.write_text("op,provider\nold,peer\n")
    with pytest.raises(ValueError, match=r"old.csv: its columns are not those"):
        append_rows(path, [Row("op", "ours", "forward", {}, 1.0, 1.0, 1.0, 0.0)], CPU)
    assert path.read_text() == "op,provider\nold,peer\n"
