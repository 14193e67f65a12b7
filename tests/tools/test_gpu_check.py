"""gpu_check.py: every step has its limit, one that hangs or fails stops no other, and all of it runs on a CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools" / "gpu"))

import gpu_check  # noqa: E402
from gpu_paths import link_packages, unpack_wheels  # noqa: E402
from gpu_steps import Step, steps  # noqa: E402


def python(name: str, code: str, seconds: int = 60, **settings) -> Step:
    return Step(name, [sys.executable, "-c", code], seconds, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_clear_line(tmp_path):
    command = [sys.executable, "tools/gpu/gpu_check.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no CUDA device is visible; `--device cpu`")


def test_the_limits_of_all_steps_fit_in_nine_minutes(tmp_path):
    chosen = steps("cuda", tmp_path, num_gpus=1, everything=False)
    assert all(step.skip or step.seconds > 0 for step in chosen)
    assert sum(step.seconds for step in chosen if not step.skip) <= 540
    assert gpu_check.SECONDS_IN_ALL < 540


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_step_names_files_that_exist(device, tmp_path):
    chosen = steps(device, tmp_path, num_gpus=8, everything=True)
    words = [word for step in chosen for word in step.command if word.endswith((".py", ".json", ".yaml"))]
    assert len(words) > 6
    assert [word for word in words if "=" not in word and not (ROOT / word).exists()] == []


def test_a_step_that_hangs_is_killed_with_its_children_and_the_next_one_runs(tmp_path, capsys):
    mark = tmp_path / "survived"
    child = f"import time, pathlib; time.sleep(6); pathlib.Path({str(mark)!r}).touch()"
    hangs = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    chosen = [
        python("hangs", hangs, seconds=2),
        python("fails", "raise SystemExit(3)"),
        python("works", "print('7 x')"),
    ]
    verdicts = gpu_check.run_all(chosen, {}, tmp_path, None)
    assert [verdict.state for verdict in verdicts] == ["FAILED", "FAILED", "ok"]
    assert "killed after its 2 s" in verdicts[0].detail
    assert "exit code 3" in verdicts[1].detail
    assert verdicts[2].detail == "7 x"
    assert capsys.readouterr().out.count("\n") == 3
    time.sleep(5)
    assert not mark.exists()


def test_no_step_starts_when_the_time_for_all_is_over(tmp_path):
    verdicts = gpu_check.run_all([python("late", "print(1)"), Step("left out", skip="no GPU")], {}, tmp_path, 1.0)
    assert [verdict.state for verdict in verdicts] == ["FAILED", "skipped"]
    assert "not run" in verdicts[0].detail


def test_tests_that_were_all_skipped_are_no_success(tmp_path):
    (verdict,) = gpu_check.run_all([python("t", "print('4 skipped in 1 s')", must_say=" passed")], {}, tmp_path, None)
    assert verdict.state == "FAILED"
    assert "nothing was run" in verdict.detail


def test_the_checkout_is_importable_by_links_alone(tmp_path):
    """`-S`: without anything that is installed."""
    folder = link_packages(tmp_path / "checkout")
    code = (
        "import m5ds.cli; from importlib.util import find_spec; print(find_spec('m5ds.kernels.common.philox').origin)"
    )
    environment = {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(folder / "m5ds/kernels/common/philox.py"), done.stderr


def test_a_bundle_without_wheels_or_with_two_of_a_package_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no wheels"):
        unpack_wheels(tmp_path, tmp_path / "site")
    for version in ("1.0", "1.1"):
        (tmp_path / f"hjson-{version}-py3-none-any.whl").touch()
    with pytest.raises(ValueError, match="several wheels of hjson"):
        unpack_wheels(tmp_path, tmp_path / "site")


@pytest.mark.slow
def test_every_step_that_a_cpu_can_run_passes_there(tmp_path):
    command = [sys.executable, "tools/gpu/gpu_check.py", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-3000:] + (tmp_path / "logs.txt").read_text()[-3000:]
    results = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [result["config"] for result in results] == ["m5product_features.yaml", "m5product.yaml"]
    assert all(result["products_per_second"] > 0 and result["share_of_measured_matmul"] > 0 for result in results)
    assert "of roofline" in (tmp_path / "summary.txt").read_text()
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000
    assert "aten::" in (tmp_path / "profile.txt").read_text()
