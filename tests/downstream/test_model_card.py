"""The model card says what a run's files say, and nothing that they do not."""

import dataclasses
import json

import pytest
from downstream_examples import tiny_run

from m5ds.data.manifest import read_manifest
from m5ds.downstream.model_card import model_card
from m5ds.downstream.pretrained import load_pretrained


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
    assert "| masked objectives | mrp, mlm, mem, mfp, mam |" in card
    assert "| contrastive pairs | image-text, text-table, table-video, video-audio |" in card
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
