"""tools/evaluate.py pretraining from its arguments to its report, with the work itself left out."""

import sys

import pytest

from m5ds.config import ConfigError
from m5ds.downstream import pretraining_command, pretraining_evaluation


@pytest.fixture
def run(monkeypatch):
    """Run the command; returns its exit code, what `evaluate_runs` was given, and what was written where."""

    def run(*words):
        asked, written = [], []
        monkeypatch.setattr(sys, "argv", ["tools/evaluate.py", "pretraining", *words])
        monkeypatch.setattr(
            pretraining_evaluation,
            "evaluate_runs",
            lambda runs, splits, *, say, **options: asked.append((runs, splits, options)) or say("working") or {"a": 1},
        )
        monkeypatch.setattr(pretraining_evaluation, "summary", lambda report: f"table of {report}")
        monkeypatch.setattr(
            pretraining_evaluation, "write_report", lambda path, tree: written.append((str(path), tree))
        )
        return pretraining_command.run(), asked, written

    return run


def test_flags_have_their_documented_defaults(run, capsys):
    code, asked, written = run("--checkpoint", "runs/a")
    options = {"batch_size": 32, "num_threads": 2, "num_replicates": 10_000}
    assert (code, asked, written) == (0, [(["runs/a"], ["validation", "test"], options)], [])
    shown = capsys.readouterr()
    assert shown.out == "table of {'a': 1}\n" and shown.err == "working\n"


def test_every_flag_reaches_its_place_and_the_report_names_its_command(run):
    words = ["--checkpoint", "a", "--checkpoint", "b", "--splits", "test", "--num-replicates", "20"]
    words += ["--batch-size", "3", "--num-threads", "5", "--out", "o.json"]
    _, asked, written = run(*words)
    assert asked == [(["a", "b"], ["test"], {"batch_size": 3, "num_threads": 5, "num_replicates": 20})]
    assert written == [("o.json", {"command": "python tools/evaluate.py pretraining " + " ".join(words), "a": 1})]


@pytest.mark.parametrize(("flag", "least"), [("--batch-size", 1), ("--num-threads", 1), ("--num-replicates", 20)])
def test_counts_that_are_too_small_are_refused(run, flag, least):
    with pytest.raises(ValueError, match=f"{flag} must be at least {least}, got {least - 1}"):
        run("--checkpoint", "a", flag, str(least - 1))
    assert run("--checkpoint", "a", flag, str(least))[0] == 0


def test_a_run_must_be_named(run):
    with pytest.raises(ConfigError, match="command line: .*--checkpoint"):
        run()


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["pretraining", "--checkpoint", "a"], True),
        (["--local_rank=1", "pretraining"], True),
        (["all", "pretraining"], False),
        (["--checkpoint", "pretraining", "all"], False),
        ([], False),
    ],
)
def test_the_task_is_the_first_word(words, asked):
    assert pretraining_command.is_asked(words) == asked
