"""A job: where it starts, what a checkpoint of it holds, and when one is written."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from m5ds.train import distributed
from m5ds.train.checkpoints import checkpoint
from m5ds.train.job import Job, Validation
from m5ds.train.start import Plan


class Remembers(Validation):
    """Knows one number."""

    def __init__(self, known: float = 0.0) -> None:
        self.known = known
        self.resumed_from: list[dict] = []

    def state(self) -> dict:
        return {"known": self.known}

    def resume(self, state: dict) -> None:
        self.resumed_from.append(dict(state))
        self.known = state.get("known", self.known)


def job_at(tmp_path: Path, saved: checkpoint.SavedCheckpoint | None, **parts) -> Job:
    """Of 20 steps of 8 products; identity holds a step of its own, which must not win."""
    plan = Plan(total_steps=20, resolved={}, precision="fp32", identity={"seed": 5, "step": 99})
    train = SimpleNamespace(global_batch_size=8, keep_last=4)
    given = {
        "config": SimpleNamespace(train=train, data=SimpleNamespace(max_bad_fraction=0.25)),
        "directory": tmp_path,
        "sources": SimpleNamespace(tokenizer=SimpleNamespace(save=lambda path: path.write_text("words"))),
        "model": SimpleNamespace(config=SimpleNamespace(save_pretrained=lambda path: path.write_text("sizes"))),
        "engine": "engine",
        "validation": Remembers(),
    }
    return Job.at(saved, plan, **{**given, **parts})


def found(tmp_path: Path, **state) -> checkpoint.SavedCheckpoint:
    return checkpoint.SavedCheckpoint(root=tmp_path / "checkpoints", tag=f"step-{state['step']:08d}", state=state)


class Says:
    """A monitor that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def written(monkeypatch, tmp_path) -> list[tuple]:
    """(folder, state, kept) of each checkpoint; its extra files are written under extras-N."""
    wrote: list[tuple] = []

    def save(engine, root, state, *, keep, write_extras):
        assert engine == "engine"
        extras = tmp_path / f"extras-{len(wrote)}"
        extras.mkdir()
        write_extras(extras)
        wrote.append((root, state, keep))
        return f"step-{state['step']:08d}"

    monkeypatch.setattr(checkpoint, "save", save)
    return wrote


def test_a_job_without_a_checkpoint_is_at_its_start(tmp_path) -> None:
    job = job_at(tmp_path, None)
    assert (job.step, job.validated, job.last_tag) == (0, -1, None)
    assert (job.total_steps, job.precision, job.identity) == (20, "fp32", {"seed": 5, "step": 99})
    assert (job.budget.num_decoded, job.budget.num_bad) == (0, 0)
    assert (job.budget.path, job.budget.max_fraction) == (tmp_path / "bad_media.jsonl", 0.25)
    assert job.validation.resumed_from == [{}], "validation is told of a new run too"
    assert job.objectives is None and job.prepare("batch") == "batch"
    assert job.checkpoints == tmp_path / "checkpoints"
    job.totals["products"] += 8
    assert job_at(tmp_path, None).totals == {"products": 0.0, "seconds": 0.0}, "each job adds up its own"


def test_a_job_goes_on_where_its_checkpoint_says(tmp_path) -> None:
    state = {"step": 7, "validated": 6, "num_decoded": 30, "num_bad": 4, "known": 0.5}
    job = job_at(tmp_path, found(tmp_path, **state))
    assert (job.step, job.validated, job.last_tag) == (7, 6, "step-00000007")
    assert (job.budget.num_decoded, job.budget.num_bad) == (30, 4)
    assert job.validation.resumed_from == [state] and job.validation.known == 0.5


@pytest.mark.parametrize("step", [0, 7])
def test_a_checkpoint_that_does_not_tell_of_validations_was_validated(tmp_path, step) -> None:
    """Earlier versions saved after the validation of a step, or not within one."""
    job = job_at(tmp_path, found(tmp_path, step=step))
    assert job.validated == job.step == step
    assert (job.budget.num_decoded, job.budget.num_bad, job.validation.known) == (0, 0, 0.0)


def test_what_one_job_saves_another_takes_up(tmp_path, written) -> None:
    first = job_at(tmp_path, None, validation=Remembers(known=0.75))
    first.step, first.validated = 5, 4
    first.budget.num_decoded, first.budget.num_bad = 40, 3
    first.save(Says())
    ((_, state, _),) = written
    second = job_at(tmp_path, found(tmp_path, **state))
    same = ("step", "validated", "last_tag", "total_steps", "identity")
    assert [getattr(second, name) for name in same] == [getattr(first, name) for name in same]
    assert (second.budget.num_decoded, second.budget.num_bad, second.validation.known) == (40, 3, 0.75)


def test_a_state_is_the_jobs_and_not_its_identitys(tmp_path, written) -> None:
    job = job_at(tmp_path, None)
    job.step, job.validated, job.validation.known = 3, 2, 0.5
    assert job.save_to(tmp_path / "best" / "checkpoints", keep=1) == "step-00000003"
    counts = {"num_decoded": 0, "num_bad": 0}
    state = {"seed": 5, "step": 3, "position": 24, "validated": 2, "known": 0.5, **counts}
    assert written == [(tmp_path / "best/checkpoints", state, 1)]
    assert (tmp_path / "extras-0/tokenizer").read_text() == "words"
    assert (tmp_path / "extras-0/model").read_text() == "sizes"


def test_a_step_is_saved_once_however_often_it_is_asked_for(tmp_path, written) -> None:
    job, monitor = job_at(tmp_path, None), Says()
    for step in (0, 0, 2, 2):
        job.step = step
        job.save(monitor)
    assert [(root, state["step"], keep) for root, state, keep in written] == [
        (job.checkpoints, 0, 4),
        (job.checkpoints, 2, 4),
    ]
    assert monitor.lines == [f"saved {job.checkpoints / tag}" for tag in ("step-00000000", "step-00000002")]
    assert job.last_tag == "step-00000002"
    resumed = job_at(tmp_path, found(tmp_path, step=2))
    resumed.save(monitor)
    assert len(written) == len(monitor.lines) == 2, "it is on disk already"
    resumed.step = 3
    resumed.save(monitor)
    assert [state["step"] for _, state, _ in written] == [0, 2, 3]


def test_a_best_checkpoint_is_apart_from_the_runs_own(tmp_path, written) -> None:
    job, best = job_at(tmp_path, None), tmp_path / "best"
    job.step = 2
    job.save_to(best, keep=1)
    job.save_to(best, keep=1)
    assert job.last_tag is None
    job.save(Says())
    assert [(root, keep) for root, _, keep in written] == [(best, 1), (best, 1), (job.checkpoints, 4)]


def test_rank_0_alone_makes_the_folder_before_the_collective(tmp_path, written, monkeypatch) -> None:
    job = job_at(tmp_path, None)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    job.save_to(tmp_path / "a" / "b", keep=1)
    assert not (tmp_path / "a").exists() and len(written) == 1
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    there: list[bool] = []
    monkeypatch.setattr(checkpoint, "save", lambda engine, root, state, **_: there.append(root.is_dir()) or "tag")
    job.save_to(tmp_path / "a" / "b", keep=1)
    job.save_to(tmp_path / "a" / "b", keep=1)
    assert there == [True, True]


def test_a_plain_validation_measures_nothing_and_ends_nothing() -> None:
    plain = Validation()
    assert plain.measure(None, None) == {} and plain.state() == {}
    assert not plain.from_start and not plain.finished
    plain.resume({"step": 3})
    plain.note(None, {"loss/mlm": 1.0})
    assert plain.state() == {} and not plain.finished
