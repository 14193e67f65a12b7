"""The mutation tool of the kernels, and a slow run of its 30 mutants."""

import ast
import random
import subprocess
import sys
from pathlib import Path

import pytest
from mutation import kernels
from mutation.trees import FAILED, PASSED

ROOT = Path(__file__).parents[2]


class FakeTree:
    """Notices every mutant but the first `survivors`; `seen` are those that it was asked about."""

    seen: list = []
    survivors = 0
    unmutated = PASSED

    def __init__(self, preloaded):
        assert "torch" in preloaded

    def run(self, tests, edits, timeout):
        assert tests
        if not edits:
            return self.unmutated
        self.seen.append(edits[0])
        return PASSED if len(self.seen) <= self.survivors else FAILED

    def close(self):
        pass


@pytest.fixture
def fake_tree(monkeypatch):
    tree = type("Tree", (FakeTree,), {"seen": []})
    monkeypatch.setattr(kernels, "Tree", tree)
    return tree


def test_every_op_with_kernels_is_mutated_and_tested():
    assert kernels.ops() == [
        "common",
        "cross_modal_attention",
        "embed_modalities",
        "hidden_dropout",
        "presence_contrastive",
    ]
    for op in kernels.ops():
        tests = kernels.tests_of(op)
        assert tests
        assert "traffic" not in tests[0], "values notice most and come first"


def test_a_mutant_is_another_valid_program_that_differs_in_one_kernel():
    everything = kernels.sites(kernels.ops())
    for site in random.Random(3).sample(everything, 25):
        edit = site.edit()
        source = (ROOT / edit.path).read_bytes()
        before, after = ast.parse(source).body, ast.parse(edit.apply(source)).body
        changed = [node for node, other in zip(before, after, strict=True) if ast.dump(node) != ast.dump(other)]
        assert len(changed) == 1
        assert changed[0].lineno <= edit.line <= changed[0].end_lineno
        assert any("triton.jit" in ast.unparse(decorator) for decorator in changed[0].decorator_list)


@pytest.mark.parametrize(("survivors", "status"), [(1, 0), (2, 1)])
def test_the_command_draws_30_of_all_ops_by_its_seed_and_wants_95_percent(survivors, status, fake_tree, capsys):
    fake_tree.survivors = survivors
    assert kernels.main(["--seed", "1", "--jobs", "1"]) == status
    assert len(set(fake_tree.seen)) == 30
    assert len({kernels.op_of(edit) for edit in fake_tree.seen}) >= 3
    printed = capsys.readouterr().out
    assert printed.count("SURVIVED") == survivors
    first, fake_tree.seen[:] = list(fake_tree.seen), []
    kernels.main(["--seed", "1", "--jobs", "1"])
    assert fake_tree.seen == first


def test_tests_that_fail_without_a_mutation_stop_the_run(fake_tree, capsys):
    fake_tree.unmutated = FAILED
    assert kernels.main(["--jobs", "1"]) == 2
    assert "without any mutation" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_30_mutants_of_the_kernels_are_noticed():
    command = [sys.executable, str(ROOT / "tests/kernels/mutate.py"), "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
