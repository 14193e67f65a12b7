"""How a finetuning run starts, goes on and describes itself, without DeepSpeed."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from downstream_examples import tiny_model

from m5ds.downstream.finetuning import job as finetune
from m5ds.downstream.finetuning.classifier import add_classifier
from m5ds.downstream.finetuning.job import EarlyStopping, Labels
from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.train.engine.precision import Precision
from m5ds.train.job import Validation

CLASSES = ClassChoice(count_C=np.array([3, 0, 5]), kept_C=np.array([True, False, True]), dropped=("b",))


def test_a_classifier_starts_from_the_seed_and_knows_its_classes(tmp_path):
    config = ClassificationConfig(dense_size=4, loss="class_balanced")
    made = add_classifier(tiny_model(tmp_path), config, CLASSES.count_C, seed=3)
    again = add_classifier(tiny_model(tmp_path), config, CLASSES.count_C, seed=3)
    other = add_classifier(tiny_model(tmp_path), config, CLASSES.count_C, seed=4)
    assert torch.equal(made.head.dense.weight, again.head.dense.weight)
    assert not torch.equal(made.head.dense.weight, other.head.dense.weight)
    assert made.weight_C[1] == 0 and made.weight_C[0] > made.weight_C[2] > 0


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

    def prepare(state=None, **changes):
        found = None if state is None else SimpleNamespace(root=tmp_path, tag="step-7", state=state)

        def find_run(config, resume):
            seen["run"] = config, resume
            return tmp_path, found

        def open_sources(config, shards, tokenizer, labelled):
            seen["sources"] = config, shards, tokenizer, labelled
            return "opened"

        def plan(config, ds, opened, at, *, finetune):
            seen["plan"] = config, ds, opened, at, finetune
            return SimpleNamespace(total_steps=20, resolved="resolved", precision="fp32", identity={"fact": 1})

        def start_engine(model, config, planned, at):
            seen["engine"] = model, config, planned.identity, at
            return "engine"

        monkeypatch.setattr(finetune.start, "find_run", find_run)
        monkeypatch.setattr(finetune.sources, "open_sources", open_sources)
        monkeypatch.setattr(finetune.start, "plan", plan)
        monkeypatch.setattr(finetune.start, "start_engine", start_engine)
        monkeypatch.setattr(finetune.run_directory, "write_description", lambda *given: seen.update(described=given))
        config = ClassificationConfig(**{"lora_rank": 3, "lora_alpha": 5.0, "patience": 2} | changes)
        settings = DownstreamConfig(name="n", output_dir="o", seed=4, classification=config)
        evaluation = SimpleNamespace(
            settings=settings, shards="shards", classes=CLASSES, labelled="labelled", level="level"
        )
        encoder = tiny_model(tmp_path)
        pretrained = SimpleNamespace(model=encoder, tokenizer="tokenizer", source="runs/a", fingerprint="f", state=None)
        made = finetune.prepare(evaluation, pretrained, "ds", "auto")
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
    assert seen["engine"] == (encoder, config, {"fact": 1}, None)
    assert (made.config, made.directory, made.sources) == (config, tmp_path, "opened")
    assert (made.model, made.engine, made.objectives) == (encoder, "engine", ("classification",))
    assert made.prepare == Labels(level="level", classes=CLASSES, modalities=encoder.names)
    assert (made.precision, made.total_steps, made.identity) == ("fp32", 20, {"fact": 1})
    assert (made.step, made.validated, made.last_tag) == (0, -1, None)
    assert isinstance(made.validation, EarlyStopping) and made.validation.patience == 2
    assert made.validation.state() == {"best": -1.0, "worse": 0} and not made.validation.from_start
    assert (made.budget.num_decoded, made.budget.num_bad) == (0, 0)
    assert made.budget.path == tmp_path / "bad_media.jsonl"
    assert made.budget.max_fraction == settings.data.max_bad_fraction


def test_without_patience_nothing_is_validated_and_hidden_modalities_are_not_shown(prepared):
    made, *_ = prepared(patience=0, modalities=["text", "image"])
    assert type(made.validation) is Validation and made.validation.measure(made, None) == {}
    assert made.prepare.modalities == ("image", "text")


def test_a_run_goes_on_where_its_checkpoint_stopped(prepared):
    settings = {
        "classification": finetune.downstream_settings.to_dict(
            DownstreamConfig(name="n", classification=ClassificationConfig(lora_rank=3, lora_alpha=5.0, patience=2))
        )["classification"]
    }
    state = {
        "finetune": saved(settings=settings),
        **{"step": 7, "best": 0.5, "worse": 2, "validated": 6, "num_decoded": 30, "num_bad": 4},
    }
    made, seen, *_ = prepared(state)
    assert (made.step, made.validated, made.last_tag) == (7, 6, "step-7")
    assert made.validation.state() == {"best": 0.5, "worse": 2}
    assert (made.budget.num_decoded, made.budget.num_bad) == (30, 4)
    assert seen["plan"][3].tag == seen["engine"][3].tag == "step-7"
    del state["validated"]
    assert prepared(state)[0].validated == 7
    state["finetune"] = saved(pretrained_fingerprint="g")
    with pytest.raises(ValueError, match="was finetuned from other weights"):
        prepared(state)


def test_the_description_counts_categories_products_and_parameters(job, tmp_path):
    job.precision, job.step, settings = Precision("fp32", "no GPU"), 1, DownstreamConfig(name="n")
    trained = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in job.model.parameters())
    assert finetune.describe(job, settings, CLASSES).splitlines() == [
        f"classification -> {tmp_path}",
        "  2 categories, 1 rare ones left out; 8 labelled products",
        f"  tuning full: {trained / 1e6:.2f} of {whole / 1e6:.2f} M parameters; steps 1 to 4",
        "  fp32 (no GPU), on cpu",
    ]
    for parameter in job.model.parameters():  # what DeepSpeed says of one that it partitioned
        parameter.ds_numel = 10**6
    assert f" of {len(list(job.model.parameters()))}.00 M parameters" in finetune.describe(job, settings, CLASSES)
    whole = ClassChoice(count_C=np.array([3, 1]), kept_C=np.ones(2, bool), dropped=())
    assert "  2 categories; 4 labelled products" in finetune.describe(job, settings, whole)


def test_the_learning_curve_is_the_runs_records(tmp_path):
    assert finetune.learning_curve(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n")
    assert finetune.learning_curve(tmp_path) == [{"step": 1}, {"step": 2}]
