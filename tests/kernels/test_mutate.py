"""The mutation tool's own parts, and a slow run of its 30 mutants."""

import ast
import random
import subprocess
import sys

import mutate
import pytest


def test_every_op_with_kernels_is_mutated_and_tested():
    assert mutate.ops() == ["cross_modal_attention", "embed_modalities", "hidden_dropout", "presence_contrastive"]
    for op in mutate.ops():
        tests = mutate.tests_of(op)
        assert tests
        assert "traffic" not in tests[0], "values notice most and come first"


def test_a_mutant_is_another_valid_program_that_differs_in_one_kernel():
    everything = mutate.places(mutate.ops())
    for op, path, number in random.Random(3).sample(everything, 25):
        found = mutate.mutant(op, path, number)
        before, after = ast.parse(path.read_text()).body, ast.parse(found.source).body
        changed = [node for node, other in zip(before, after, strict=True) if ast.dump(node) != ast.dump(other)]
        assert len(changed) == 1
        assert changed[0].lineno <= found.line <= changed[0].end_lineno
        assert any("triton.jit" in ast.unparse(decorator) for decorator in changed[0].decorator_list)


@pytest.mark.parametrize(("survivors", "status"), [(1, 0), (2, 1)])
def test_the_command_draws_30_of_all_ops_by_its_seed_and_wants_95_percent(survivors, status, monkeypatch, capsys):
    seen = []

    def run_tests(tests, mutant, timeout):
        assert tests
        if mutant is None:
            return True
        seen.append(mutant)
        return len(seen) <= survivors

    monkeypatch.setattr(mutate, "run_tests", run_tests)
    assert mutate.main(["--seed", "1", "--jobs", "1"]) == status
    assert len(set(seen)) == 30
    assert len({mutant.op for mutant in seen}) >= 3
    printed = capsys.readouterr().out
    assert printed.count("SURVIVED") == survivors
    first, seen[:] = list(seen), []
    mutate.main(["--seed", "1", "--jobs", "1"])
    assert seen == first


def test_tests_that_fail_without_a_mutation_stop_the_run(monkeypatch, capsys):
    monkeypatch.setattr(mutate, "run_tests", lambda *_: False)
    assert mutate.main(["--jobs", "1"]) == 2
    assert "without any mutation" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_30_mutants_of_the_kernels_are_noticed():
    command = [sys.executable, mutate.__file__, "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
