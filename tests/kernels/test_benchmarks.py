"""The benchmark harness: it verifies before it times, appends to one CSV, and states bounds."""

import csv
import dataclasses

import pytest
import torch

from m5ds.kernels.benchmarks import run
from m5ds.kernels.benchmarks.case import Case, Estimate, Provider, percentiles, verify
from m5ds.kernels.benchmarks.cross_modal_attention import cases
from m5ds.kernels.benchmarks.plot import draw
from m5ds.kernels.benchmarks.timing import MODES

CPU = torch.device("cpu")


def provider(name: str, factor: float) -> Provider:
    return Provider(name, lambda x: x * factor, (torch.ones(4, requires_grad=True),), torch.ones(4))


def test_a_provider_that_disagrees_is_named():
    case = Case("op", {"n": 4}, [provider("ours", 2.0), provider("same", 2.0), provider("peer", 2.1)], tolerance=1e-3)
    with pytest.raises(ValueError, match="peer: output differs"):
        verify(case)
    verify(dataclasses.replace(case, providers=case.providers[:2]))


def test_the_quick_attention_case_verifies_and_states_its_traffic():
    (case,) = cases(CPU, quick=True)
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
        run.append_rows(path, run.run_case(case, CPU, repeats=3))
    run.print_estimates(case)
    assert "GPU closed form fwd" in capsys.readouterr().out
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(MODES)
    assert {row["provider"] for row in rows} == {"ours", "peer"}
    assert all(row["device"] and "torch" in row["versions"] for row in rows)
    assert [picture.suffix for picture in draw(path, tmp_path / "plots")] == [".png"]


def test_every_module_of_the_folder_is_an_op_or_known():
    assert "cross_modal_attention" in run.ops()
    assert not {"case", "run", "timing", "plot"} & set(run.ops())
