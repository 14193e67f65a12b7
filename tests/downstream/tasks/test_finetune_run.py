"""How a finetuning run starts, goes on, saves and describes itself, without DeepSpeed."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from downstream_examples import tiny_batch, tiny_model
from finetune_cases import LABELS, Monitor, Stop

from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig
from m5ds.downstream.tasks import finetune
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.model.masking import PRODUCTS
from m5ds.train.precision import Precision

CLASSES = ClassChoice(count_C=np.array([3, 0, 5]), kept_C=np.array([True, False, True]), dropped=("b",))
SAVE = finetune._save


def test_targets_are_products_and_those_with_a_label(tmp_path):
    batch = tiny_batch(tiny_model(tmp_path), labels=LABELS)
    assert finetune.FinetuneStep.targets(None, batch) == {PRODUCTS: 8, "classification": 7}


def test_a_classifier_starts_from_the_settings_seed_and_knows_its_classes(tmp_path):
    config = ClassificationConfig(dense_size=4, loss="class_balanced")
    settings = DownstreamConfig(name="t", seed=3, classification=config)
    model = finetune.build_classifier(settings, SimpleNamespace(model=tiny_model(tmp_path)), CLASSES)
    again = finetune.ProductClassifier(tiny_model(tmp_path), config, 3, seed=3)
    assert torch.equal(model.head.dense.weight, again.head.dense.weight)
    assert model.weight_C[1] == 0 and model.weight_C[0] > model.weight_C[2] > 0
    assert not model.training


def saved(**changes):
    settings = {"classification": {"loss": "x"}, "category_level": 2}
    return {"pretrained_fingerprint": "f", "pretrained": "runs/a", "settings": settings} | changes


def found_with(finetuning):
    return SimpleNamespace(root=Path("root"), tag="step-1", state={"finetune": finetuning})


def test_a_checkpoint_goes_on_only_with_its_own_weights_and_settings():
    finetune._check_same_finetuning(found_with(saved()), saved())
    leafy = {"classification": {"loss": "x"}}
    finetune._check_same_finetuning(
        found_with(saved(settings=leafy)), saved(settings=leafy | {"category_level": "leaf"})
    )
    refused = {
        "a pretraining checkpoint; pass it as --checkpoint": None,
        r"was finetuned from other weights \(runs/a\)": saved(pretrained_fingerprint="g"),
        "the classification section differs": saved(settings={"classification": {"loss": "y"}, "category_level": 2}),
        "was finetuned at category_level leaf, not 2": saved(settings=leafy),
    }
    for message, before in refused.items():
        with pytest.raises(ValueError, match=rf"^root/step-1: {message}"):
            finetune._check_same_finetuning(found_with(before), saved())


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Runs `prepare` over recorders; `state` is that of the checkpoint it goes on from."""
    seen = {}

    def prepare(state=None):
        found = None if state is None else SimpleNamespace(root=tmp_path, tag="step-7", state=state)

        def find_run(config, resume):
            seen["run"] = config, resume
            return tmp_path, found

        def open_sources(config, shards, tokenizer, labelled):
            seen["sources"] = config, shards, tokenizer, labelled
            return "opened"

        def plan(config, ds, opened, at, *, finetune):
            seen["plan"] = config, ds, opened, at, finetune
            return SimpleNamespace(total_steps=20, resolved="resolved", precision="fp32", facts={"fact": 1})

        def start_engine(model, config, planned, at):
            seen["engine"] = model, config, planned.facts, at
            return "engine"

        monkeypatch.setattr(finetune.start, "find_run", find_run)
        monkeypatch.setattr(finetune.sources, "open_sources", open_sources)
        monkeypatch.setattr(finetune.start, "plan", plan)
        monkeypatch.setattr(finetune.start, "start_engine", start_engine)
        monkeypatch.setattr(finetune.run_directory, "write_description", lambda *given: seen.update(described=given))
        config = ClassificationConfig(lora_rank=3, lora_alpha=5.0)
        settings = DownstreamConfig(name="n", output_dir="o", seed=4, classification=config)
        evaluation = SimpleNamespace(
            settings=settings, shards="shards", classes=CLASSES, labelled="labelled", level="level"
        )
        encoder = tiny_model(tmp_path)
        pretrained = SimpleNamespace(model=encoder, tokenizer="tokenizer", source="runs/a", fingerprint="f", state=None)
        made = finetune.prepare(evaluation, pretrained, "model", "ds", "auto")
        return made, seen, settings, encoder

    return prepare


def test_a_new_run_starts_at_step_zero_under_the_settings_it_was_given(prepared, tmp_path):
    made, seen, settings, encoder = prepared()
    config, resume = seen["run"]
    assert (config.name, config.output_dir, config.seed, resume) == ("classification", str(Path("o/n")), 4, "auto")
    assert (config.data, config.model, config.train) == (settings.data, encoder.spec, settings.train)
    assert seen["sources"] == (config, "shards", "tokenizer", "labelled")
    assert seen["plan"][:4] == (config, "ds", "opened", None)
    record = seen["plan"][4]
    assert record.pop("settings")["classification"]["lora_rank"] == 3
    assert record == {
        "task": "classification",
        "pretrained": "runs/a",
        "pretrained_fingerprint": "f",
        "num_classes": 3,
        "lora_rank": 3,
        "lora_alpha": 5.0,
    }
    assert seen["described"] == (tmp_path, config, "resolved", {"fact": 1})
    assert seen["engine"] == ("model", config, {"fact": 1}, None)
    assert (made.settings, made.config, made.directory, made.sources) == (settings, config, tmp_path, "opened")
    assert (made.level, made.classes, made.model, made.engine) == ("level", CLASSES, "model", "engine")
    assert (made.precision, made.total_steps, made.facts) == ("fp32", 20, {"fact": 1})
    assert (made.step, made.best, made.worse, made.validated, made.last_tag) == (0, -1.0, 0, 0, None)
    assert (made.budget.num_decoded, made.budget.num_bad) == (0, 0)
    assert made.budget.path == tmp_path / "bad_media.jsonl"
    assert made.budget.max_fraction == settings.data.max_bad_fraction


def test_a_run_goes_on_where_its_checkpoint_stopped(prepared):
    settings = {
        "classification": finetune.downstream_settings.to_dict(
            DownstreamConfig(name="n", classification=ClassificationConfig(lora_rank=3, lora_alpha=5.0))
        )["classification"]
    }
    state = {
        "finetune": saved(settings=settings),
        **{"step": 7, "best": 0.5, "worse": 2, "validated": 6, "num_decoded": 30, "num_bad": 4},
    }
    made, seen, *_ = prepared(state)
    assert (made.step, made.best, made.worse, made.validated, made.last_tag) == (7, 0.5, 2, 6, "step-7")
    assert (made.budget.num_decoded, made.budget.num_bad) == (30, 4)
    assert seen["plan"][3].tag == seen["engine"][3].tag == "step-7"
    del state["validated"]
    assert prepared(state)[0].validated == 7
    state["finetune"] = saved(pretrained_fingerprint="g")
    with pytest.raises(ValueError, match="was finetuned from other weights"):
        prepared(state)


def test_a_job_starts_without_a_best_accuracy():
    defaults = {name: field.default for name, field in finetune.FinetuneJob.__dataclass_fields__.items()}
    assert [defaults[name] for name in ("step", "best", "worse", "validated", "last_tag")] == [0, -1.0, 0, 0, None]


def test_losses_and_rate_are_recorded_every_so_often_and_at_the_end(job, monkeypatch):  # noqa: F811
    job.settings = DownstreamConfig(name="t", classification=ClassificationConfig(dense_size=8))
    train = finetune.RunConfig(
        name="t", output_dir="o", model=job.config.model,
        train=type(job.config.train)(
            **{**vars(job.config.train), "log_every": 3, "save_every": 2, "keep_last": 6, "total_steps": 5}
        ),
    )  # fmt: skip
    job.config, job.total_steps = train, 5
    job.engine.get_lr = lambda: [0.25, 0.5]
    kept = []
    monkeypatch.setattr(finetune, "_save", lambda job, root, keep: kept.append((root.name, job.step, keep)))
    monitor = Monitor()
    assert finetune.finetune(job, monitor, Stop()) == 0
    assert [(step, kind) for step, kind, _ in monitor.records] == [(3, "train"), (5, "train")]
    assert all(values["optimizer/learning_rate"] == 0.25 and values["loss/total"] > 0 for *_, values in monitor.records)
    assert kept == [("checkpoints", 2, 6), ("checkpoints", 4, 6), ("checkpoints", 5, 6)]
    assert job.budget.num_decoded == 5


def test_a_validation_is_due_at_its_steps_and_at_the_end_once(job):  # noqa: F811
    due = []
    for step in range(6):
        job.step, job.total_steps, job.validated = step, 5, 0
        due.append(finetune._validation_is_due(job))
    assert due == [False, False, True, False, True, True]
    job.step = job.validated = 4
    assert not finetune._validation_is_due(job)
    job.validated, job.settings = 0, DownstreamConfig(name="t")
    assert not finetune._validation_is_due(job)


def test_only_a_better_accuracy_is_a_new_best(job):  # noqa: F811
    for best, saved_as in ((-1.0, ["best"]), (1.0, [])):
        job.best, job.worse, job.saved = best, 3, []
        finetune._validate(job, Monitor(), Stop())
        assert [name for name, *_ in job.saved] == saved_as
        assert (job.worse, job.best == best) == ((0, False) if saved_as else (4, True))
        job.sources.validation = type(job.sources.validation)(job.sources.validation.batches)
    equal = job.best = 1.0
    finetune._validate(job, Monitor(), Stop())
    assert job.worse == 5 and equal == job.best


def test_a_validation_without_a_split_or_a_label_is_refused(job):  # noqa: F811
    (batch,) = job.sources.validation.batches
    batch.label_B = torch.full_like(batch.label_B, -1)
    with pytest.raises(ValueError, match="no validation product has a label"):
        finetune._validate(job, Monitor(), Stop())
    job.sources.validation = None
    with pytest.raises(ValueError, match="needs shards with a validation split"):
        finetune._validate(job, Monitor(), Stop())


def test_a_checkpoint_holds_the_jobs_state_and_is_written_once_a_step(job, monkeypatch, tmp_path):  # noqa: F811
    wrote = []

    def save(engine, root, state, *, keep, write_extras):
        assert engine is job.engine and root.is_dir()
        folder = tmp_path / f"extras-{len(wrote)}"
        folder.mkdir()
        write_extras(folder)
        assert (folder / "model" / "config.json").is_file() and (folder / "tokenizer").is_file()
        wrote.append((root.relative_to(tmp_path).as_posix(), state, keep))

    monkeypatch.setattr(finetune.checkpoint, "save", save)
    job.sources.tokenizer = SimpleNamespace(save=lambda path: path.write_text("t"))
    job.facts = {"fact": 1, "step": 99}
    job.step, job.best, job.worse, job.validated = 3, 0.5, 1, 2
    job.budget.num_decoded, job.budget.num_bad = 40, 4
    regular, best = tmp_path / "checkpoints", tmp_path / "best" / "checkpoints"
    for root, keep in ((regular, 2), (regular, 2), (best, 1), (best, 1)):
        SAVE(job, root, keep)
    state = {
        **{"fact": 1, "step": 3, "position": 24, "num_decoded": 40, "num_bad": 4},
        **{"best": 0.5, "worse": 1, "validated": 2},
    }
    assert wrote == [("checkpoints", state, 2), ("best/checkpoints", state, 1), ("best/checkpoints", state, 1)]
    assert job.last_tag == "step-00000003"
    job.step = 4
    SAVE(job, regular, 2)
    assert len(wrote) == 4 and job.last_tag == "step-00000004"


def test_the_description_counts_categories_products_and_parameters(job, tmp_path):  # noqa: F811
    job.precision, job.step, job.classes = Precision("fp32", "no GPU"), 1, CLASSES
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in job.model.parameters())
    assert finetune.describe(job).splitlines() == [
        f"classification -> {tmp_path}",
        "  2 categories, 1 rare ones left out; 8 labelled products",
        f"  tuning full: {trained / 1e6:.2f} of {whole / 1e6:.2f} M parameters; steps 1 to 4",
        "  fp32 (no GPU), on cpu",
    ]
    for parameter in job.model.parameters():  # what DeepSpeed says of one that it partitioned
        parameter.ds_numel = 10**6
    assert f" of {len(list(job.model.parameters()))}.00 M parameters" in finetune.describe(job)
    job.classes = ClassChoice(count_C=np.array([3, 1]), kept_C=np.ones(2, bool), dropped=())
    assert "  2 categories; 4 labelled products" in finetune.describe(job)


def test_the_learning_curve_is_the_runs_records(tmp_path):
    assert finetune.learning_curve(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n")
    assert finetune.learning_curve(tmp_path) == [{"step": 1}, {"step": 2}]


def test_products_of_left_out_classes_neither_teach_nor_are_tested(job, monkeypatch):  # noqa: F811
    job.classes = CLASSES
    kept = [label if label != 1 else -1 for label in LABELS]
    monitor = Monitor()
    assert finetune._validate(job, monitor, Stop())
    (batch,) = job.sources.validation.batches
    assert batch.label_B.tolist() == kept
    predicted = job.model.eval()(batch).logits_BC.argmax(1).tolist()
    right = [guess == label for guess, label in zip(predicted, kept, strict=True) if label >= 0]
    assert monitor.validations()[0][1]["accuracy"] == pytest.approx(sum(right) / 5)
    taught = []
    targets = finetune.FinetuneStep.targets
    monkeypatch.setattr(
        finetune.FinetuneStep,
        "targets",
        lambda step, batch: taught.append(batch.label_B.tolist()) or targets(step, batch),
    )
    job.settings = DownstreamConfig(name="t")
    finetune.finetune(job, Monitor(), Stop())
    assert taught and all(labels == kept for labels in taught)
