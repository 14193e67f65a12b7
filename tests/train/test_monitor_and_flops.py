"""Recorded metrics survive a kill and a resume; FLOPs count only rows that are there."""

import json
from pathlib import Path

import torch

from m5ds import config
from m5ds.data.random_batch import random_batch
from m5ds.train.flops import FlopCounter
from m5ds.train.monitor import Monitor

ROOT = Path(__file__).resolve().parents[2]


def test_resume_drops_what_was_recorded_after_the_checkpoint(tmp_path: Path) -> None:
    with Monitor(tmp_path, first_step=0, total_steps=4) as monitor:
        for step in range(1, 5):
            monitor.record(step, "train", {"loss/total": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "ki')
    with Monitor(tmp_path, first_step=2, total_steps=4) as monitor:
        monitor.record(3, "train", {"loss/total": 30.0})
        assert monitor.first_and_last("train")[0]["loss/total"] == 1.0
    recorded = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["loss/total"]) for entry in recorded] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_scalars_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Monitor(tmp_path, first_step=0, total_steps=1) as monitor:
        monitor.record(1, "train", {"loss/mlm": 2.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("train/loss/mlm")[0].value == 2.5


def test_flops_of_one_modality_by_hand_and_nothing_for_absent_ones() -> None:
    spec = config.load(ROOT / "configs/run/quickstart.yaml").model
    counter = FlopCounter(spec)
    only_text = random_batch(spec, [[False, True, False, False, False]], vocab_size=64)
    rows = int(only_text.modalities["text"].length_B.sum())
    width, hidden = spec.hidden_size, spec.ffn_dim
    per_layer = rows * (6 * width**2 + 2 * width**2 + 4 * width * hidden) + 4 * width * rows**2
    assert counter.count(only_text) == 3 * 2 * per_layer
    nothing = random_batch(spec, torch.zeros(2, 5, dtype=torch.bool), vocab_size=64)
    assert counter.count(nothing) == 0
