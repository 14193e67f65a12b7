"""The mutation tool: what it changes, what it leaves alone, which tests it asks, and what it says."""

import ast
from pathlib import Path

import pytest
from mutation import command, patches, selection, sites, trees
from mutation.edits import Edit, Source

ROOT = Path(__file__).parents[2]


def mutated(text: str) -> list[str]:
    source = Source("m5ds/example.py", text.encode())
    edits = [edit for site in sites.sites(source) if (edit := site.edit())]
    return [ast.unparse(ast.parse(edit.apply(source.bytes))) for edit in edits]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = a + b", {"x = a - b"}),
        ("x = (a - b) * c", {"x = (a + b) * c", "x = a - b + c"}),
        ("x = a < b", {"x = a >= b", "x = a <= b"}),
        ("x = a == b", {"x = a != b"}),
        ("x = a in b", {"x = a not in b"}),
        ("x = a and b", {"x = a or b", "x = a", "x = b"}),
        ("x = not a", {"x = a"}),
        ("x = 3", {"x = 4", "x = 2"}),
        ("x = True", {"x = False"}),
        ("x = 0.5", {"x = 1.0"}),
        ("x = f(a, b)", {"x = f(b, a)"}),
        ("x = f(k=a)", {"x = f()"}),
        ("x = min(a, b)", {"x = max(a, b)"}),
        ("x = [a for a in b if c(a)]", {"x = [a for a in b]"}),
        ("x = a[:b]", {"x = a[:b + 1]"}),
        ("x += a", {"x -= a", "pass"}),
        ("if a:\n    f()", {"if not a:\n    f()", "if a:\n    pass"}),
        ("x = a if b else c", {"x = a if not b else c"}),
        ("def f():\n    raise ValueError(1 + 1)", {"def f():\n    pass"}),
        ("x = f'{a + b}'", {"x = f'{a - b}'"}),
    ],
)
def test_each_kind_of_place_has_its_mutants(before, after):
    assert set(mutated(before)) - {"pass"} == after - {"pass"}


@pytest.mark.parametrize(
    "text",
    [
        '"""Words."""',
        "def f(a: int | None) -> list[int] | None:\n    assert a < 3, 'why'\n    return a",
        "@dataclass(frozen=True)\nclass A:\n    '''Words.'''\n    b: Literal[3]",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    x = 1",
        "print(f'{100 * share:.1f} %', flush=True)",
        "def f(a):\n    return zip(a, strict=True)",
    ],
)
def test_words_types_and_invariants_are_left_alone(text):
    assert mutated(text) == []


def test_a_mutant_keeps_what_stands_around_it():
    """`a - b` inside a product stays one operand, and the lines above stay where they are."""
    source = Source("m5ds/example.py", "# é\nx = 1 * (a - b)  # why\n".encode())
    texts = [edit.apply(source.bytes).decode() for site in sites.sites(source) if (edit := site.edit())]
    assert "# é\nx = 1 * ((a + b))  # why\n" in texts


def test_every_place_of_m5ds_gives_another_program():
    drawn, total = command.draw(seed=5, count=100, prefixes=[])
    assert total > 10_000
    for edit in drawn:
        before = (ROOT / edit.path).read_bytes()
        assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(edit.apply(before)))


def test_a_seed_draws_the_same_mutants_again_and_another_seed_others():
    first, again, other = (command.draw(seed, 30, ["m5ds/data/batches/order"])[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert {edit.path for edit in first} == {"m5ds/data/batches/order.py"}


def test_default_arguments_run_with_the_function_and_constants_with_the_import():
    text = "LIMIT = 3\n\n\ndef f(a=4):\n    b = a\n    return b\n"
    found = {site.what: site.lines for site in sites.sites(Source("m5ds/example.py", text.encode()))}
    assert found["change `3`"] == ()
    assert found["change `4`"] == (5, 6)
    assert found["delete `b = a`"] == (5,)


def record(seconds, lines, failed=()):
    return {"seconds": seconds, "failed": list(failed), "lines": {"m5ds/data/batches/order.py": lines}}


def test_tests_that_execute_the_line_are_asked_those_of_the_own_file_first():
    records = {
        "tests/train/test_step.py": record(
            {"tests/train/test_step.py::slow": 9.0}, {"tests/train/test_step.py::slow": [7]}
        ),
        "tests/data/batches/test_order.py": record(
            {
                "tests/data/batches/test_order.py::b": 2.0,
                "tests/data/batches/test_order.py::a": 1.0,
                "tests/data/batches/test_order.py::red": 0.1,
            },
            {name: [7, 8] for name in ("tests/data/batches/test_order.py::a", "tests/data/batches/test_order.py::b")},
            failed=["tests/data/batches/test_order.py::red"],
        ),
        "tests/data/batches/test_loader.py": record(
            {"tests/data/batches/test_loader.py::c": 1.0}, {"tests/data/batches/test_loader.py::c": [1, 2]}
        ),
    }
    edit = Edit("m5ds/data/batches/order.py", 7, 0, 1, "", "", (7,))
    chosen = selection.select([edit], records)
    assert chosen.first == ("tests/data/batches/test_order.py::a", "tests/data/batches/test_order.py::b")
    assert chosen.others == ("tests/train/test_step.py::slow",)
    at_import = Edit("m5ds/data/batches/order.py", 1, 0, 1, "", "", ())
    assert "tests/data/batches/test_loader.py::c" in selection.select([at_import], records).others


def test_a_line_that_no_test_executes_is_a_survivor_and_says_so():
    asked = command.Asked([], {})
    trial = command.Trial.of(Edit("m5ds/data/batches/order.py", 7, 0, 1, "", "", (7,)))
    assert asked(trial) == command.Outcome(False, "no fast test executes it")


class FakeTree:
    def __init__(self, statuses):
        self._statuses = list(statuses)

    def run(self, files, edits, timeout, chosen):
        return self._statuses.pop(0)


@pytest.mark.parametrize(("status", "noticed"), [(0, False), (1, True), (2, True), (-11, True), (None, True)])
def test_a_failure_a_crash_and_a_hang_are_noticed(status, noticed):
    name = "tests/data/batches/test_order.py::a"
    records = {"tests/data/batches/test_order.py": record({name: 1.0}, {name: [7]})}
    asked = command.Asked([FakeTree([status, 0])], records)
    trial = command.Trial.of(Edit("m5ds/data/batches/order.py", 7, 0, 1, "", "", (7,)))
    assert asked(trial).noticed is noticed


def test_a_diff_and_a_table_name_the_same_mutant(tmp_path):
    drawn, _ = command.draw(3, 20, ["m5ds/data"])
    (tmp_path / "all.diff").write_text("".join(edit.diff() for edit in drawn))
    for edit, trial in zip(drawn, patches.read(tmp_path / "all.diff"), strict=True):
        source = (ROOT / edit.path).read_bytes()
        assert trial.edits[0].apply(source) == edit.apply(source)
    (tmp_path / "table").write_text("# no epochs\nm5ds/data/batches/order.py: EPOCHS = 2 => EPOCHS = 3\n")
    with pytest.raises(ValueError, match="table:2: m5ds/data/batches/order.py holds 'EPOCHS = 2' not at all"):
        patches.read(tmp_path / "table")


@pytest.mark.slow
def test_a_wrong_order_is_noticed_and_an_equal_one_survives():
    tree = trees.Tree()
    test = ["tests/data/batches/test_order.py"]
    wrong = patches.replacement("m5ds/data/batches/order.py", "% ", "* ")
    same = patches.replacement(
        "m5ds/data/batches/order.py",
        "Which product comes at which position: a",
        "Words. Which product comes at which position: a",
    )
    try:
        assert tree.run(test, [same]) == trees.PASSED
        assert tree.run(test, [wrong]) == trees.FAILED
        assert tree.run(test) == trees.PASSED, "the tree is as it was"
    finally:
        tree.close()


def test_mutants_made_by_hand_fit_the_source():
    trials = patches.read(ROOT / "tests/mutants/by_hand.txt")
    assert len(trials) >= 25
    for trial in trials:
        (edit,) = trial.edits
        before = (ROOT / edit.path).read_bytes()
        assert ast.dump(ast.parse(edit.apply(before))) != ast.dump(ast.parse(before)), trial.what
