"""The model card says what a run's files say, and nothing that they do not."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from downstream_examples import tiny_run

from m5ds.data.shards.manifest import read_manifest
from m5ds.downstream.embed import model_card as model_cards
from m5ds.downstream.embed.model_card import model_card
from m5ds.downstream.embed.pretrained import load_pretrained


@pytest.fixture
def trained(tmp_path, exported, shards):
    """An export passed off as a run of three steps over the shards, with two validations."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    lines = [
        {"kind": "validation", "step": 0, "loss/mlm": 7.25, "retrieval/average/ratio": 1.0},
        {"kind": "train", "step": 2, "loss/mlm": 5.5},
        {"kind": "validation", "step": 3, "loss/mlm": 4.125, "retrieval/average/ratio": 2.5, "time": 9.75},
        {"kind": "validation", "step": 4, "loss/mlm": 3.0625},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = tiny_run(tmp_path, f"data.shards={shards}", "seed=8", "train.global_batch_size=24").to_dict()
    state = {"step": 3, "manifest_hash": read_manifest(str(shards)).hash, "precision": "bf16", "zero_stage": 3}
    source = str(tmp_path / "run" / "checkpoints" / "step-00000003")
    return dataclasses.replace(load_pretrained(exported), run=run, state=state, source=source)


def test_the_data_is_named_by_its_manifest_and_counted_by_modality(trained, shards):
    card, manifest = model_card(trained), read_manifest(str(shards))
    assert f"| data | {shards}, manifest {manifest.hash} |" in card
    train = manifest.split("train")
    images = sum(count for pattern, count in train.presence_patterns.items() if "image" in pattern.split("+"))
    assert f"| train products | {train.num_products} (image {images}, text " in card
    assert "| validation products | " in card


def test_the_training_is_told(trained):
    card = model_card(trained)
    assert "# tiny\n" in card
    for line in ("| steps | 3, 24 products each |", "| precision | bf16, ZeRO-3 |", "| seed | 8 |"):
        assert line in card
    assert "| losses of masked | mrp, mlm, mem, mfp, mam |" in card
    assert "| losses of contrastive | itc/image-text, itc/text-table, itc/table-video, itc/video-audio |" in card
    assert f"| weights | sha256 {trained.fingerprint} |" in card


def test_the_last_validation_up_to_the_exported_step_is_shown(trained):
    card = model_card(trained)
    assert "| loss/mlm | 4.1250 |" in card and "| retrieval/average/ratio | 2.5000 |" in card
    assert (
        "7.25" not in card and "3.0625" not in card and "9.75" not in card and "| step" not in card.split("## Val")[1]
    )


def test_shards_that_changed_or_are_gone_are_not_counted(trained):
    other = dataclasses.replace(trained, state={**trained.state, "manifest_hash": "another"})
    assert "manifest another |" in model_card(other) and "train products" not in model_card(other)
    run = {**trained.run, "data": {**trained.run["data"], "shards": "/nowhere"}}
    assert "train products" not in model_card(dataclasses.replace(trained, run=run))


def test_a_run_without_validation_says_so(trained, tmp_path):
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert "None was recorded." in model_card(trained)
    assert "not recorded here" in model_card(dataclasses.replace(trained, run=None, state=None))


def objectives(**terms):
    """What a card reads of a model's objectives: their terms' names."""
    made = [
        (name, SimpleNamespace(terms=[SimpleNamespace(name=one) for one in names])) for name, names in terms.items()
    ]
    return SimpleNamespace(chosen=lambda: made)


@pytest.fixture
def described(monkeypatch, tmp_path):
    """The card of a made-up model, line by line; `state` and `run` change what is known of its run."""
    inputs = {"image": ("pixels", 5), "text": ("tokens", None), "table": ("pairs", None)}
    modalities = {
        name: SimpleNamespace(input=SimpleNamespace(kind=kind, dim=dim)) for name, (kind, dim) in inputs.items()
    }
    spec = SimpleNamespace(
        modalities=modalities,
        modality_names=tuple(inputs),
        hidden_size=16,
        projection_dim=8,
        absent="drop",
        harmony=SimpleNamespace(kind="cosine"),
    )
    model = SimpleNamespace(
        spec=spec,
        names=tuple(inputs),
        parameters=lambda: [torch.zeros(1000, 200), torch.zeros(50_000)],
        blocks=[1, 2, 3],
        num_unimodal=1,
        objectives=objectives(masked=["mrp", "mlm"], contrastive=["itc/image-text", "itc/text-table"]),
    )
    splits = {
        "train": SimpleNamespace(num_products=9, presence_patterns={"image+text": 4, "text": 3, "": 2}),
        "test": SimpleNamespace(num_products=1, presence_patterns={"image": 1}),
    }
    manifest = SimpleNamespace(hash="h", splits=splits, modalities=("image", "text"))
    monkeypatch.setattr(model_cards, "read_manifest", lambda shards: manifest)

    def card(state=None, run=None, **changes):
        for name, value in changes.items():
            setattr(model, name, value)
        source = str(tmp_path / "checkpoints" / "step-3")
        given = SimpleNamespace(model=model, state=state, run=run, fingerprint="f" * 8, source=source)
        return model_card(given).splitlines()

    return card


def test_every_line_of_the_models_table(described):
    lines = described()
    start = lines.index("| model | |")
    assert lines[start - 4 : start] == ["# m5ds model", "", lines[start - 2], ""]
    assert lines[start : start + 11] == [
        "| model | |",
        "|---|---|",
        "| modalities | image (pixels), text (tokens), table (pairs) |",
        "| parameters | 0.2 M, fp32 |",
        "| width | 16; 8 for contrastive states |",
        "| layers | 3, of which 1 see one modality alone |",
        "| absent modalities | drop |",
        "| losses of masked | mrp, mlm |",
        "| losses of contrastive | itc/image-text, itc/text-table |",
        "| harmony | cosine |",
        "| weights | sha256 ffffffff |",
    ]
    assert "The run that made it is not recorded here." in lines and "None was recorded." in lines
    (media,) = [line for line in lines if line.startswith("A product is a mapping")]
    assert "`description`, `attributes`, `images`; a medium is" in media
    assert not [line for line in described(objectives=objectives()) if line.startswith("| losses of")]


def test_every_line_of_the_trainings_table(described):
    run = {
        "name": "run",
        "seed": 4,
        "data": {"shards": "s"},
        "train": {"global_batch_size": 24, "learning_rate": 0.00025},
    }
    state = {"step": 3, "manifest_hash": "h"}
    lines = described(state, run)
    start = lines.index("| training | |")
    assert "# run" in lines and lines[start + 1 : start + 9] == [
        "|---|---|",
        "| data | s, manifest h |",
        "| train products | 9 (image 4, text 7) |",
        "| test products | 1 (image 1, text 0) |",
        "| steps | 3, 24 products each |",
        "| learning rate | 0.00025 |",
        "| precision | unknown, ZeRO-? |",
        "| seed | 4 |",
    ]
    known = described(state | {"precision": "bf16", "zero_stage": 2}, run)
    assert "| precision | bf16, ZeRO-2 |" in known
    for half in (described(state, None), described(None, run)):
        assert "The run that made it is not recorded here." in half


def test_the_last_validation_at_or_before_the_step_counts(described, tmp_path):
    state = {"step": 3, "manifest_hash": "h"}
    for steps, value in (((1, 3, 4), 3), ((1, 2, 9), 2), ((4, 5), None)):
        lines = [json.dumps({"kind": "validation", "step": step, "loss/a": step, "category/b": 0.5}) for step in steps]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        card = described(state)
        if value is None:
            assert "None was recorded." in card
        else:
            assert f"| loss/a | {value}.0000 |" in card and "| category/b | 0.5000 |" in card
