"""tools/gpu_bundle.py: what the target lacks is found from metadata, and a folder that grew too large is refused."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_bundle  # noqa: E402
from gpu_bundle import check_size, missing_packages, read_assumed, requirements_of  # noqa: E402

METADATA = {
    "deepspeed": ["torch", "hjson", "py_cpuinfo", "pydantic>=2", "numpy", 'nvidia-ml-py; extra == "nvml"'],
    "pydantic": ["annotated-types>=0.6", 'tzdata; platform_system == "Windows"', "typing_extensions>=4"],
    "annotated-types": ['typing-extensions; python_version < "3.9"'],
    "hjson": [],
}


def requirements(text: str) -> list[str]:
    return METADATA[text.split(">")[0].split("<")[0]]


def test_what_is_missing_follows_requirements_and_stops_at_what_the_machine_has():
    assumed = {"torch", "numpy", "py-cpuinfo", "typing-extensions"}
    found = missing_packages(["deepspeed"], assumed, requirements, "3.12")
    assert found == {
        "deepspeed": "deepspeed",
        "hjson": "hjson",
        "pydantic": "pydantic>=2",
        "annotated-types": "annotated-types>=0.6",
    }


def test_markers_are_those_of_the_target_and_not_of_this_machine():
    def asks(text: str) -> list[str]:
        return {"a": ['b; python_version < "3.13"', 'c; python_version >= "3.13"', 'd; sys_platform == "win32"']}.get(
            text, []
        )

    assert set(missing_packages(["a"], set(), asks, "3.12")) == {"a", "b"}
    assert set(missing_packages(["a"], set(), asks, "3.13")) == {"a", "c"}


def test_two_packages_that_need_each_other_end():
    assert set(missing_packages(["a"], set(), lambda text: {"a": ["b"], "b": ["a"]}[text], "3.12")) == {"a", "b"}


def test_shipped_list_names_packages_once_and_never_what_the_bundle_is_for():
    path = ROOT / "tools/gpu_machine_packages.txt"
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assumed = read_assumed(path)
    assert len(assumed) == len(lines)
    assert not assumed & {"deepspeed", "hjson", "pydantic", "omegaconf", "av", "webdataset"}


def test_a_folder_above_the_limit_names_its_largest_file(tmp_path):
    (tmp_path / "small.whl").write_bytes(bytes(2**19))
    assert check_size(tmp_path, 1.0) == pytest.approx(0.5)
    (tmp_path / "large.whl").write_bytes(bytes(2**20))
    with pytest.raises(ValueError, match=r"1.5 MiB, more than --limit-mib 1; the largest is large.whl \(1.0 MiB\)"):
        check_size(tmp_path, 1.0)


def test_requirements_are_read_from_a_wheel(tmp_path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing-1.0.dist-info/METADATA", "Name: thing\nRequires-Dist: b>=1\nRequires-Dist: c\n\nText")
    assert requirements_of(wheel) == ["b>=1", "c"]


def test_isolation_hides_what_is_installed_but_not_granted():
    program = str(ROOT / "tools/gpu/gpu_isolation.py")
    granted = subprocess.run([sys.executable, program, "tqdm", "tqdm"], capture_output=True, text=True, timeout=60)
    assert granted.returncode == 0, granted.stderr
    hidden = subprocess.run([sys.executable, program, "tqdm", "hjson"], capture_output=True, text=True, timeout=60)
    assert "No module named 'hjson'" in hidden.stderr
    shared = "import sys; sys.path.insert(0, 'tools/gpu'); import gpu_isolation as g; "
    shared += "f = g.Filtered({'nvidia-nvjpeg-cu12'}, []); print('nvidia' in f.hidden, 'nvidia.dali' in f.hidden)"
    done = subprocess.run([sys.executable, "-c", shared], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"]


def test_a_folder_that_holds_something_is_refused(tmp_path, monkeypatch):
    (tmp_path / "old.whl").touch()
    monkeypatch.setattr(sys, "argv", ["gpu_bundle.py", str(tmp_path)])
    with pytest.raises(ValueError, match="is not empty"):
        gpu_bundle.main()


@pytest.mark.slow
def test_a_bundle_is_built_within_its_limit(tmp_path):
    probe = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--timeout", "10", "--retries", "0", "hjson"]
    if subprocess.run([*probe, "-d", str(tmp_path / "probe")], capture_output=True, timeout=120).returncode:
        pytest.skip("pip reaches no index from here")
    folder = tmp_path / "bundle"
    command = [sys.executable, "tools/gpu_bundle.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-500:]
    names = {wheel.name.split("-")[0] for wheel in folder.iterdir()}
    assert names >= {"deepspeed", "hjson", "omegaconf", "pydantic", "pydantic_core", "av", "webdataset"}
    assert not names & {"torch", "numpy", "transformers", "triton"}
    assert check_size(folder, 60.0) > 1
