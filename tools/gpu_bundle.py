"""Collect what a GPU machine without a network lacks: DeepSpeed and the small packages that m5ds imports, as wheels.

    python tools/gpu_bundle.py FOLDER [--python 3.12] [--assumed FILE] [--verify-with PYTHON]

Wheels for Linux on x86-64; DeepSpeed's is built here, without its compiled operators. Carry FOLDER and the checkout
along, then `python3 tools/gpu/gpu_check.py --bundle FOLDER`; for anything else unpack the wheels onto PYTHONPATH
(`python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl`). `--verify-with` imports the training code
with that interpreter, the bundle and the packages of `--assumed` alone. Exits 2 where the folder outgrows --limit-mib.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

GPU_TOOLS = Path(__file__).resolve().parent / "gpu"
sys.path[1:1] = [str(GPU_TOOLS), str(GPU_TOOLS.parents[1])]

from gpu_paths import ROOT, link_packages, unpack_wheels  # noqa: E402

from m5ds.cli import run_tool  # noqa: E402

ROOTS = ("deepspeed", "omegaconf", "pydantic", "webdataset", "av", "pytest", "pytest-timeout")
"""What the checkout's training code, kernels and tests import beyond torch and Hugging Face's packages."""
MODULES = (
    "m5ds.train.loop",
    "m5ds.train.engine.build",
    "m5ds.train.step",
    "m5ds.data.batches.random_batch",
    "m5ds.downstream.embed.encoding",
)
LIMIT_MIB = 60
_GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
_OLD_PLATFORMS = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def missing_packages(
    roots: Iterable[str], assumed: set[str], requirements: Callable[[str], list[str]], python: str
) -> dict[str, str]:
    """Canonical name -> the requirement that first asked for it, over everything that `roots` need on the target.

    `requirements(text)` gives the requirements of the package that satisfies `text`; an assumed package and what it
    needs are never asked for. Markers are those of Linux, x86-64 and `python`; extras are left out.
    """
    target = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "extra": "",
    }
    found: dict[str, str] = {}
    queue = list(roots)
    while queue:
        requirement = Requirement(queue.pop(0))
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate(target)
        if applies and name not in assumed and name not in found:
            found[name] = f"{requirement.name}{requirement.specifier}"
            queue += requirements(found[name])
    return found


def read_assumed(path: Path) -> set[str]:
    """Canonical names, one a line, `#` for comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return {str(canonicalize_name(line)) for line in lines if line}


def pins() -> dict[str, str]:
    """Canonical name -> `name==version` of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {str(canonicalize_name(line.split("==")[0])): line.strip() for line in lines if "==" in line}


def requirements_of(wheel: Path) -> list[str]:
    """`Requires-Dist` of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return metadata.get_all("Requires-Dist") or []


class Collector:
    """Puts one wheel a package into a folder."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python, self.pins = folder, python, pins()

    def __call__(self, requirement: str) -> list[str]:
        """Fetch or build the wheel and return its requirements; the pinned version where there is one."""
        name = str(canonicalize_name(Requirement(requirement).name))
        wanted = self.pins.get(name, requirement)
        before = set(self.folder.glob("*.whl"))
        print(f"  {wanted}", flush=True)
        if name == "deepspeed":
            self._pip("wheel", "--no-build-isolation", "--wheel-dir", str(self.folder), wanted)
        else:
            self._pip("download", *self._target(), "--dest", str(self.folder), wanted)
        (wheel,) = set(self.folder.glob("*.whl")) - before
        return requirements_of(wheel)

    def _target(self) -> list[str]:
        platforms = [f"manylinux_{glibc}_x86_64" for glibc in _GLIBC] + list(_OLD_PLATFORMS)
        chosen = [word for platform in platforms for word in ("--platform", platform)]
        return ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python, *chosen]

    def _pip(self, command: str, *arguments: str) -> None:
        """`ValueError` with pip's last line where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *arguments],
            env=os.environ | {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ValueError(f"pip {command} {arguments[-1]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def check_size(folder: Path, limit_mib: float) -> float:
    """MiB of all files. `ValueError` above the limit, with the largest."""
    sizes = {path.name: path.stat().st_size / 2**20 for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > limit_mib:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"{folder}: {total:.1f} MiB, more than --limit-mib {limit_mib:g}; the largest is {largest}"
            f" ({sizes[largest]:.1f} MiB): if the machine has it, add its name to the --assumed file"
        )
    return total


def verify(folder: Path, python: str, assumed: set[str]) -> None:
    """Import the training code in `python`, which sees the bundle and the assumed packages only. `ValueError`."""
    with tempfile.TemporaryDirectory() as place:
        paths = [str(link_packages(Path(place) / "checkout")), str(unpack_wheels(folder, Path(place) / "bundle"))]
        command = [python, str(GPU_TOOLS / "gpu_isolation.py"), ",".join(sorted(assumed)), *MODULES]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{python} with {folder}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new or empty folder for the wheels")
    parser.add_argument("--python", default="3.12", help="the target's Python (default: %(default)s)")
    parser.add_argument("--assumed", type=Path, default=Path(__file__).with_name("gpu_machine_packages.txt"))
    parser.add_argument("--verify-with", metavar="PYTHON", help="an interpreter that has the assumed packages")
    parser.add_argument("--limit-mib", type=float, default=LIMIT_MIB, help="default: %(default)s")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()):
        raise ValueError(f"{options.folder}: is not empty; name a new folder")
    assumed = read_assumed(options.assumed)
    found = missing_packages(ROOTS, assumed, Collector(options.folder, options.python), options.python)
    size = check_size(options.folder, options.limit_mib)
    if options.verify_with:
        verify(options.folder, options.verify_with, assumed)
        print(f"{options.verify_with} imports {', '.join(MODULES)}")
    print(f"{len(found)} wheels, {size:.1f} MiB, in {options.folder} for Python {options.python}")
    return 0


if __name__ == "__main__":
    run_tool(main)
