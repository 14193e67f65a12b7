"""Recorded metrics survive a kill and a resume; FLOPs count only rows that are there."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from m5ds import config
from m5ds.data.batches.random_batch import random_batch
from m5ds.model import fusion
from m5ds.train.report import monitor as monitor_module
from m5ds.train.report.flops import FlopCounter, device_peak
from m5ds.train.report.monitor import Monitor

ROOT = Path(__file__).resolve().parents[3]


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


def test_flops_count_what_each_product_sees_and_each_layer_updates() -> None:
    """Row by row from the layers: rows that only serve as keys cost their projections and nothing else."""
    visibility = "{image: [image, text], text: [text], table: [], video: [audio], audio: [audio]}"
    blocks = f"model.blocks.cross={{visibility: {visibility}, updates: [image, video], ffn_dim: 40}}"
    spec = config.load(ROOT / "configs/run/quickstart.yaml", [blocks]).model
    present = [[True] * 5, [True, True, False, False, True], [False, False, True, True, False]]
    batch = random_batch(spec, present, vocab_size=64)
    width, expected = spec.hidden_size, 0
    for layer in fusion.layers(spec):
        for b in range(len(present)):
            length = {}
            for name, settings in spec.modalities.items():
                count = int(batch.modalities[name].length_B[b])
                length[name] = count + (settings.cls == "learned" and count > 0)
            names = spec.modality_names
            sees = {(i, j): layer.visibility[names.index(i)][names.index(j)] for i in names for j in names}
            updated = {name for name, on in zip(names, layer.updates, strict=True) if on}
            for name in names:
                if name in updated or any(sees[other, name] for other in updated):
                    expected += length[name] * 3 * 2 * width * width
                if name in updated:
                    expected += length[name] * (2 * width * width + 2 * 2 * width * layer.ffn_dim)
                    keys = sum(length[key] for key in names if sees[name, key])
                    expected += 2 * 2 * length[name] * keys * width
    assert FlopCounter(spec).count(batch) == 3 * expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", 125e12),
        ("something else", None),
    ],
)
def test_the_peak_is_that_of_the_device_named(monkeypatch, name, peak) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_peak(torch.device("cuda")) == peak
    assert device_peak(torch.device("cpu")) is None


def test_first_and_last_are_those_of_the_kind(tmp_path: Path) -> None:
    with Monitor(tmp_path, first_step=0, total_steps=4) as monitor:
        assert monitor.first_and_last("validation") is None
        for step, kind in ((0, "validation"), (1, "train"), (2, "train"), (3, "validation"), (4, "train")):
            monitor.record(step, kind, {})
        ends = monitor.first_and_last("validation"), monitor.first_and_last("train")
    assert [[record["step"] for record in pair] for pair in ends] == [[0, 3], [1, 4]]


class Asked:
    """Stands for a progress bar or a writer: every call in order."""

    def __init__(self) -> None:
        self.calls: list = []

    def __call__(self, *given, **options) -> "Asked":
        self.calls.append(("made", given, options))
        return self

    def __getattr__(self, name: str):
        return lambda *given, **options: self.calls.append((name, given, options))


@pytest.fixture
def shown(monkeypatch):
    """(bar, TensorBoard writer) of a monitor."""
    bar, writer = Asked(), Asked()
    monkeypatch.setattr(monitor_module, "tqdm", bar)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", writer)
    return bar, writer


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.2), (False, 10)])
def test_the_bar_starts_where_the_run_does_and_is_rare_in_a_log_file(tmp_path, shown, monkeypatch, terminal, seconds):
    stream = SimpleNamespace(isatty=lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    Monitor(tmp_path, first_step=4, total_steps=9)
    ((_, _, options),) = shown[0].calls
    assert options == {
        "total": 9,
        "initial": 4,
        "unit": "step",
        "dynamic_ncols": True,
        "file": stream,
        "mininterval": seconds,
        "smoothing": 0.1,
    }
    # What TensorBoard holds of steps after the one that the run goes on from is of the abandoned branch.
    assert shown[1].calls == [("made", (str(tmp_path / "tensorboard"),), {"purge_step": 5, "flush_secs": 30})]


def test_the_bar_is_moved_one_step_at_a_time_and_out_of_the_way_of_lines(tmp_path, shown, capsys) -> None:
    monitor = Monitor(tmp_path, first_step=0, total_steps=9)
    with monitor:
        monitor.advance(loss="1.0")
        monitor.say("words")
        monitor.record(1, "train", {"a": 1.0, "b": 2.0})
    bar, writer = (asked.calls[1:] for asked in shown)
    assert bar == [
        ("set_postfix", ({"loss": "1.0"},), {"refresh": False}),
        ("update", (1,), {}),
        ("clear", (), {}),
        ("refresh", (), {}),
        ("close", (), {}),
    ]
    assert writer == [
        ("add_scalar", ("train/a", 1.0, 1), {}),
        ("add_scalar", ("train/b", 2.0, 1), {}),
        ("close", (), {}),
    ]
    assert monitor._file.closed and capsys.readouterr().out == "words\n"


def test_what_was_recorded_up_to_the_step_that_a_run_goes_on_from_is_kept(tmp_path, shown) -> None:
    lines = [{"step": step, "kind": "train"} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Monitor(tmp_path, first_step=2, total_steps=9).records == lines[:2]
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps(line) + "\n" for line in lines[:2])
