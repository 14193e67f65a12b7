"""The training loop with stubs for the step, the engine, the validation and what is written."""

import signal

import pytest
from job_cases import CPU, Run

from m5ds.train import loop


@pytest.fixture
def started(monkeypatch, tmp_path):
    return lambda **options: Run(monkeypatch, tmp_path, **options)


def test_a_run_records_validates_and_saves_when_it_is_told(started) -> None:
    run = started(total=9, log_every=4, validate_every=3, save_every=2, keep_last=5)
    assert run.train() == 0 and run.job.step == 9
    assert run.at("record train") == [1, 4, 8, 9]
    assert run.at("validate") == run.at("record validation") == [0, 3, 6, 9]
    assert run.at("save") == [2, 4, 6, 8, 9]
    assert {event[3] for event in run.events if event[0] == "save"} == {5}


def test_a_run_without_periods_validates_before_and_after_and_saves_once(started) -> None:
    run = started(total=5, log_every=10, validate_every=0, save_every=0)
    run.train()
    assert (run.at("validate"), run.at("save"), run.at("record train")) == ([0, 5], [5], [1, 5])


def test_a_step_counts_files_first_and_trains_on_batches_moved_to_the_device(started) -> None:
    run = started(total=1)
    run.train()
    kinds = [event[0] for event in run.events]
    assert kinds[:7] == [
        *("validate", "record validation", "note", "count", "budget", "step", "advance"),
    ]
    assert kinds[7:11] == ["record train", "validate", "record validation", "note"], "before the checkpoint"
    assert "save" in kinds[11:]
    assert ("budget", {"num_decoded": 7, "num_bad": 1, "local": ["bad"]}) in run.events
    assert ("step", [("moved", CPU)] * 2) in run.events
    shown = dict(event for event in run.events if event[0] == "advance")["advance"]
    assert shown["loss"] == "1.235" and shown["products_s"].isdigit()


def test_a_resumed_run_takes_the_order_up_where_it_was_and_does_not_validate_first(started) -> None:
    run = started(total=6, step=4, validated=4, last_tag="step-00000004", validate_every=0)
    run.train()
    assert run.asked == [((32,), {"num_steps": 2})]
    assert (run.at("validate"), run.at("save")) == ([6], [6])
    untrained = started(total=2, step=0, validated=0, last_tag="step-00000000", validate_every=0)
    untrained.train()
    assert untrained.at("validate") == [2]


def test_a_run_that_was_stopped_within_a_validation_makes_it_up_before_it_trains_on(started) -> None:
    run = started(total=6, step=4, validated=2, last_tag="step-00000004", validate_every=2)
    run.train()
    assert run.at("validate") == [4, 6]
    late = started(total=6, step=5, validated=4, last_tag="step-00000005", validate_every=2)
    late.train()
    assert late.at("validate") == [6], "between two validations there is none to make up"
    ended = started(total=6, step=6, validated=4, last_tag="step-00000006")
    assert ended.train() == 0 and ended.at("validate") == [6] and ended.at("step") == []


def test_a_run_that_is_done_does_nothing(started) -> None:
    run = started(total=6, step=6, validated=6, last_tag="step-00000006")
    assert run.train() == 0 and run.events == []


def test_a_request_to_stop_saves_before_the_step_and_returns_the_signal(started) -> None:
    run = started(total=6, stop_at=3)
    assert run.train() == signal.SIGUSR1
    assert run.job.step == 2 and run.at("save") == [2]
    assert [event[2] for event in run.events if event[0] == "count"] == [0, 0, signal.SIGUSR1]
    assert len([event for event in run.events if event[0] == "step"]) == 2


def test_the_greatest_signal_of_all_ranks_is_returned(started, monkeypatch) -> None:
    run = started(total=6, stop_at=1)
    monkeypatch.setattr(loop.distributed, "gather_objects", lambda own: [0, own, 1])
    assert run.train() == signal.SIGUSR1


def test_a_stop_where_the_run_resumed_does_not_save_again(started) -> None:
    run = started(total=6, step=4, validated=0, last_tag="step-00000004", stop_at=5)
    assert run.train() == signal.SIGUSR1
    assert run.at("save") == [] and run.job.last_tag == "step-00000004"
    just_saved = started(total=6, save_every=2, stop_at=3)
    just_saved.train()
    assert just_saved.at("save") == [2]


def test_a_validation_that_is_cut_short_records_nothing_saves_and_ends_the_run(started) -> None:
    run = started(total=3, stop_at=1)
    run.stop.requested, run.report = signal.SIGTERM, None
    assert run.train() == signal.SIGTERM
    assert run.at("validate") == [0] and run.at("record validation") == [] and run.at("step") == []
    assert run.at("save") == [0] and run.saved_state()["validated"] == -1
    last = started(total=1, validated=0)
    last.report = None
    last.stop.requested = 0
    last.when_validated = lambda: setattr(last.stop, "requested", signal.SIGUSR1)
    assert last.train() == signal.SIGUSR1, "also within the last one"
    assert last.job.step == 1 and last.at("save") == [1]


def test_a_validation_that_measures_nothing_records_nothing_and_is_done(started) -> None:
    run = started(total=1)
    run.report = {}
    assert run.train() == 0
    assert run.at("validate") == [0, 1] and run.at("record validation") == [] and run.at("note") == []
    assert run.saved_state()["validated"] == 1


def test_a_validation_that_is_not_from_the_start_comes_when_it_is_due(started) -> None:
    run = started(total=5, validate_every=2, from_start=False)
    run.train()
    assert run.at("validate") == [2, 4, 5]


def test_training_ends_where_validation_has_seen_enough(started) -> None:
    run = started(total=9, validate_every=2)
    run.finished_at = 4
    assert run.train() == 0
    assert run.job.step == 4 and run.at("validate") == [0, 2, 4] and run.at("save") == [4]
    assert [event[1] for event in run.events if event[0] == "note"] == [0, 2, 4], "noted once recorded"


def test_a_resumed_run_that_had_seen_enough_trains_no_more(started) -> None:
    run = started(total=9, step=4, validated=4, last_tag="step-00000004", validate_every=2)
    run.finished_at = 4
    assert run.train() == 0 and run.events == [], "neither a step nor another checkpoint"
    cut_short = started(total=9, step=4, validated=2, last_tag="step-00000004", validate_every=2)
    cut_short.finished_at = 4
    assert cut_short.train() == 0 and cut_short.job.step == 4
    assert cut_short.at("validate") == cut_short.at("record validation") == [4], "the one made up may be the last"
    assert cut_short.at("step") == []


def test_a_validation_is_in_the_state_that_is_saved_after_it(started) -> None:
    run = started(total=5, validate_every=2, save_every=1, keep_last=9)
    run.train()
    saved = [event[2] for event in run.events if event[0] == "save"]
    assert [(state["step"], state["validated"]) for state in saved] == [(1, 0), (2, 2), (3, 2), (4, 4), (5, 5)]


def test_a_run_that_was_stopped_within_a_validation_goes_on_as_one_that_was_not(started) -> None:
    """The steps, records and validations of both parts are those of the run that nobody stopped."""
    options = {"total": 6, "validate_every": 2, "log_every": 1}
    whole = started(**options)
    whole.train()
    first = started(**options)

    def stop_at_four() -> None:
        if first.job.step == 4:
            first.stop.requested, first.report = signal.SIGTERM, None

    first.when_validated = stop_at_four
    assert first.train() == signal.SIGTERM
    state = first.saved_state()
    assert (state["step"], state["validated"]) == (4, 2)
    second = started(**options, step=4, validated=state["validated"], last_tag=first.job.last_tag)
    assert second.train() == 0
    for kind in ("record train", "record validation", "note", "count"):
        assert first.at(kind) + second.at(kind) == whole.at(kind), kind
    assert second.saved_state() == whole.saved_state()


def test_batches_are_prepared_before_they_are_counted(started) -> None:
    run = started(total=1)
    run.job.prepare = lambda batch: run.events.append(("prepare", 1)) or batch
    run.train()
    kinds = [event[0] for event in run.events]
    assert kinds.index("prepare") < kinds.index("count") and kinds.count("prepare") == 2


def test_a_checkpoint_holds_identity_position_counts_and_what_the_run_owns(started, tmp_path) -> None:
    run = started(total=3)
    run.train()
    (saved,) = (event for event in run.events if event[0] == "save")
    counts = {"num_decoded": 40, "num_bad": 3}
    more = {"validated": 3, "own": "state"}
    assert saved[1] == tmp_path / "checkpoints"
    assert saved[2] == {"world_size": 1, "seed": 11, "step": 3, "position": 24, **counts, **more}
    assert ("tokenizer", tmp_path / "checkpoints/tag/tokenizer") in run.events
    assert (tmp_path / "checkpoints/tag/model/config.json").is_file()
    assert run.events[-1] == ("say", f"saved {tmp_path / 'checkpoints/step-00000003'}")
