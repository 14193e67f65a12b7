"""Declared ranges, exact pins and what can be imported without the extras."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def declared():
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **keywords: found.update(keywords))
        runpy.run_path(str(ROOT / "setup.py"))
    return found


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def requirements(declared) -> list[Requirement]:
    extras = [text for texts in declared["extras_require"].values() for text in texts]
    return [Requirement(text) for text in {*declared["install_requires"], *extras}]


def test_every_requirement_is_pinned_within_its_range(declared):
    exact = pins("constraints.txt")
    for requirement in requirements(declared):
        assert requirement.specifier.contains(exact[canonicalize_name(requirement.name)]), requirement
    assert exact.keys() == {canonicalize_name(requirement.name) for requirement in requirements(declared)}


def test_the_oldest_versions_tried_lie_within_the_ranges(declared):
    oldest = pins("constraints-oldest.txt")
    for requirement in requirements(declared):
        if version := oldest.get(canonicalize_name(requirement.name)):
            assert requirement.specifier.contains(version), requirement


def test_no_requirement_is_exact_or_capped_so_that_others_can_be_installed_beside(declared):
    operators = {clause.operator for requirement in requirements(declared) for clause in requirement.specifier}
    assert operators == {">="}


def test_what_serves_a_model_imports_without_the_training_extra(declared):
    """Hidden by a name that is None in sys.modules, which makes any import of it fail."""
    hidden = [Requirement(text).name.replace("-", "_") for text in declared["extras_require"]["train"]]
    assert "deepspeed" in hidden
    modules = [
        "processor",
        "model.m5mmt",
        "downstream.embed.pretrained",
        "downstream.search.query",
        "downstream.search.index",
        "data.shards.reader",
    ]
    code = f"import sys\nsys.modules |= dict.fromkeys({hidden!r})\n"
    code += "\n".join(f"import m5ds.{module}" for module in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr[-600:]
