"""Bookkeeping of a run at its limits: bad media, tags, the learning rate, FLOPs, the final table."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from m5ds.config import BlockConfig, ModalityConfig, ModelConfig
from m5ds.data.batches.random_batch import random_batch
from m5ds.inputs import FeatureRows, TextTokens
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.train import faults
from m5ds.train.checkpoints import tags
from m5ds.train.distributed import RankError
from m5ds.train.engine import schedule
from m5ds.train.report import flops, summary
from m5ds.train.report.monitor import Monitor
from m5ds.train.step import Diverged, TrainStep


@dataclass(frozen=True)
class Bad:
    product_id: str
    member: str = "0.image.0.jpg"
    reason: str = "junk"


@pytest.mark.parametrize(("num_decoded", "allowed"), [(1, 10), (1000, 10), (1001, 10), (1100, 11), (2000, 20)])
def test_the_budget_is_a_share_of_the_files_and_of_a_thousand_at_least(tmp_path, num_decoded, allowed):
    budget = faults.BadMediaBudget(tmp_path / "bad_media.jsonl", 0.01)
    budget.update(num_decoded=num_decoded, num_bad=allowed, local=[Bad("a")])
    with pytest.raises(RankError):
        budget.update(num_decoded=0, num_bad=1, local=[Bad("b")])
    assert (budget.num_decoded, budget.num_bad, budget.num_listed) == (num_decoded, allowed + 1, 2)


def test_a_step_without_bad_files_never_stops_a_resumed_run(tmp_path):
    budget = faults.BadMediaBudget(tmp_path / "bad_media.jsonl", 0.01, (100, 50))
    budget.update(num_decoded=10, num_bad=0, local=[])
    assert (budget.num_decoded, budget.num_bad) == (110, 50)


@pytest.mark.parametrize(("number", "more"), [(20, ""), (21, " and 1 more"), (25, " and 5 more")])
def test_the_verdict_shows_twenty_files_and_counts_the_others(tmp_path, number, more):
    budget = faults.BadMediaBudget(tmp_path / "bad_media.jsonl", 0.0)
    with pytest.raises(RankError) as caught:
        budget.update(num_decoded=30, num_bad=number, local=[Bad(f"p{i}") for i in range(number)])
    assert str(caught.value).count("0.image.0.jpg (junk)") == 20
    assert str(caught.value).endswith(f"p19/0.image.0.jpg (junk){more}")


def test_a_list_of_bad_media_is_readable_utf8(tmp_path):
    faults.BadMediaBudget(tmp_path / "bad.jsonl", 0.5).note([Bad("台灯")])
    assert '"product_id": "台灯"' in (tmp_path / "bad.jsonl").read_text(encoding="utf-8")


def test_tags_saved_in_the_same_second_are_ordered_by_step(tmp_path):
    for step in (30, 10, 20):
        folder = tmp_path / tags.tag_name(step)
        folder.mkdir()
        (folder / "weights.pt").write_bytes(b"w" * step)
        tags.complete(tmp_path, folder.name, 5.0, tags.describe_files(folder, ["weights.pt"]))
    found, skipped = tags.newest_first(tmp_path)
    assert [(tag.name, tag.created) for tag in found] == [(f"step-000000{step}", 5.0) for step in (30, 20, 10)]
    assert skipped == []
    assert found[0].files["weights.pt"]["bytes"] == 30
    assert json.loads((tmp_path / "step-00000010/manifest.json").read_text())["version"] == 1
    assert tags.keep_last(tmp_path, 3) == []


def test_latest_moves_only_after_the_manifest_is_there(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(tags, "write_atomically", lambda path, text: written.append(path.name))
    tags.complete(tmp_path, "step-00000001", 0.0, {})
    assert written == ["manifest.json", "latest"]


def test_removing_a_tag_that_is_gone_is_no_error(tmp_path):
    tags.remove(tmp_path, "step-00000009")


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 10),
        (4, 5 / 10),
        (9, 1.0),
        # A tenth, half and nine tenths of the cosine, from 1 to a floor of 0.01.
        (18, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 10))),
        (54, 0.505),
        (90, 0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi / 10))),
        (99, 0.01),
        (100, 0.01),
        (1000, 0.01),
    ],
)
def test_the_rate_climbs_in_a_line_and_falls_in_a_cosine(step, expected):
    assert schedule.factor(step, warmup_steps=10, total_steps=100) == pytest.approx(expected, abs=1e-12)


def test_a_run_that_is_all_warm_up_ends_at_the_floor_and_not_in_a_division_by_zero():
    assert [schedule.factor(step, warmup_steps=3, total_steps=3) for step in range(5)] == [
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        1.0,
        pytest.approx(0.01),
        pytest.approx(0.01),
    ]


def test_the_scheduler_multiplies_the_peak_rate_step_by_step():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule.warmup_cosine(2, 4)(optimizer)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [pytest.approx(0.5 * factor) for factor in (0.5, 1.0, 0.505, 0.01)]


def test_flops_of_two_modalities_counted_pair_by_pair_of_rows():
    """Text sees audio only, audio is not updated; audio has one content row and a learned one, text no learned row."""
    spec = ModelConfig(
        hidden_size=8,
        num_heads=2,
        ffn_dim=20,
        modalities={
            "text": ModalityConfig(input=TextTokens(max_tokens=6), embedder="tokens", head="vocabulary", cls="mean"),
            "audio": ModalityConfig(input=FeatureRows(rows=1, dim=3), embedder="features", head="regression"),
        },
        blocks={"fusion": BlockConfig(visibility={"text": ["audio"], "audio": ["audio"]}, updates=["text"])},
    )
    batch = random_batch(spec, [[True, True], [True, False], [False, True]], vocab_size=9)
    text, audio = (batch.modalities[name].length_B.tolist() for name in ("text", "audio"))
    assert audio == [1, 0, 1]
    audio = [2, 0, 2]
    queries_keys_values = 2 * 3 * 8 * 8 * (sum(text) + sum(audio))
    output_and_feed_forward = sum(text) * (2 * 8 * 8 + 2 * 2 * 8 * 20)
    scores_and_values = sum(2 * 2 * 8 for b in range(3) for _ in range(text[b]) for _ in range(audio[b]))
    forward = queries_keys_values + output_and_feed_forward + scores_and_values
    assert flops.FlopCounter(spec).count(batch) == 3 * forward


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA H200", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A40", 150),
        ("NVIDIA A10", 125),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
        ("AMD Instinct MI300X", 1307),
        ("AMD Instinct MI250X", 191.5),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name, tera, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.device_peak(torch.device("cuda")) == (None if tera is None else tera * 1e12)
    assert flops.device_peak(torch.device("cpu")) is None


def test_the_monitor_shows_where_the_run_is_and_is_silent_on_other_ranks(tmp_path, monkeypatch, capsys):
    with Monitor(tmp_path, first_step=3, total_steps=9) as monitor:
        monitor.advance(loss="1.0")
        monitor.advance(loss="0.5")
        assert (monitor._bar.n, monitor._bar.total) == (5, 9)
        assert "loss=0.5" in monitor._bar.postfix
        monitor.record(4, "train", {"a": 1.0})
        monitor.record(4, "validation", {"a": 2.0})
        monitor.record(5, "train", {"a": 3.0})
        monitor.say("words")
        first, last = monitor.first_and_last("train")
        assert (first["a"], last["a"]) == (1.0, 3.0)
        assert monitor.first_and_last("test") is None
        recorded = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert recorded == monitor.records, "every line is on the disk at once"
        assert recorded[1] == {"step": 4, "kind": "validation", "a": 2.0}
    assert capsys.readouterr().out == "words\n"
    monkeypatch.setattr("m5ds.train.distributed.rank", lambda: 1)
    with Monitor(tmp_path / "other", first_step=0, total_steps=9) as other:
        other.advance(loss="1")
        other.record(1, "train", {"a": 1.0})
        other.say("words")
    assert not (tmp_path / "other").exists() and capsys.readouterr().out == ""


class Ends:
    """Stands for a monitor with a first and a last record of each kind."""

    def __init__(self, **ends):
        self._ends = ends

    def first_and_last(self, kind):
        return self._ends.get(kind)


def test_the_final_table_shows_first_and_last_losses_and_the_mean_over_contrastive_pairs():
    first = {"step": 1, "loss/mlm": 4.0, "loss/itc/a-b": 2.0, "loss/itc/b-c": 3.0, "learning_rate": 1.0}
    last = {"step": 9, "loss/mlm": 1.0, "loss/itc/a-b": 1.0, "loss/itc/b-c": 0.5, "loss/new": 7.0}
    lines = summary._losses(Ends(train=(first, last), validation=({"loss/mlm": 5.0}, {"loss/mlm": 2.5})))
    assert [line.split() for line in lines] == [
        [],
        ["loss", "first", "last"],
        ["training", "mlm", "4.0000", "1.0000"],
        ["training", "itc,", "mean", "of", "2", "2.5000", "0.7500"],
        ["held", "out", "mlm", "5.0000", "2.5000"],
    ]
    assert summary._losses(Ends())[2:] == []


def test_the_final_table_shows_retrieval_before_after_and_against_chance():
    pair = "retrieval/image->text"
    last = {f"{pair}/R@1": 0.5, f"{pair}/R@10": 0.75, f"{pair}/chance": 0.02, f"{pair}/size": 50.0}
    last |= {"retrieval/average/ratio": 20.0, "retrieval/worst/ratio": 5.0}
    category = {"category/P@1": 0.6, "category/mAP": 0.4, "category/chance": 0.1, "category/size": 48.0}
    lines = summary._retrieval(Ends(validation=({f"{pair}/R@1": 0.04}, last | category)))
    assert [line.split() for line in lines] == [
        [],
        ["held-out", "retrieval", "R@1", "before", "chance", "ratio", "R@10", "products"],
        ["image->text", "0.500", "0.040", "0.0200", "25.0", "0.750", "50"],
        ["average,", "worst", "20.0", "worst", "5.0", "x", "chance"],
        ["fused,", "by", "category", "P@1", "0.600,", "mAP", "0.400,", "chance", "0.100,", "48", "products"],
    ]
    assert len(summary._retrieval(Ends(validation=({}, last)))) == 4
    assert len(summary._retrieval(Ends(validation=({}, category)))) == 3
    assert summary._retrieval(Ends()) == []


def test_fp16_may_discard_a_hundred_steps_in_a_row_and_not_one_more(tmp_path):
    text = ModalityConfig(input=TextTokens(), embedder="tokens", head="vocabulary", mask_unit="token")
    spec = ModelConfig(modalities={"text": text}, blocks={"encoder": BlockConfig()})
    model = M5ForPretraining(M5Config.from_spec(spec, vocab_size=9, mask_id=4, special_ids=[0]))
    engine = SimpleNamespace(was_step_applied=lambda: False)
    step = TrainStep(engine, model, seed=0, precision="fp16", directory=tmp_path)
    for _ in range(100):
        step._check_applied([], {})
    engine.was_step_applied = lambda: True
    step._check_applied([], {})
    engine.was_step_applied = lambda: False
    for _ in range(100):
        step._check_applied([], {})
    with pytest.raises(Diverged, match="a gradient is not finite"):
        step._check_applied([], {"mlm": 1.0})
    report = json.loads((tmp_path / "not_finite.json").read_text())
    assert report == {"what": "gradient", "losses": {"mlm": "1.0"}, "ids_by_rank": [[]]}


def test_the_closing_lines_add_up_time_and_memory(monkeypatch, tmp_path):
    memory = [{"rank": 3 * 2**30, "launchers": 2**29}, {"rank": 2**30, "launchers": 2**29}]
    monkeypatch.setattr(summary.runtime, "peak_memory", lambda: memory[0])
    monkeypatch.setattr(summary.distributed, "gather_objects", lambda own: memory)
    folder = tmp_path / "a run"
    job = SimpleNamespace(
        totals={"products": 900.0, "seconds": 30.0},
        budget=SimpleNamespace(num_listed=4),
        directory=folder,
        checkpoints=folder / "checkpoints",
        last_tag="step-00000007",
        total_steps=7,
        step=5,
    )
    lines = summary.closing(job, Ends(), 41.6, "train longer").splitlines()
    assert dict(line.split("  ", 1) for line in lines if "  " in line and not line.startswith("loss")) == {
        "time": " " * 20 + "42 s in all, 30 products/s in training",
        "peak memory": " " * 13 + "4.50 GB (2 ranks 4.00 GB, launchers 0.50 GB)",
        "damaged media files": " " * 5 + f"4 ({folder / 'bad_media.jsonl'})",
        "checkpoint": " " * 14 + str(folder / "checkpoints/step-00000007"),
        "curves": " " * 18 + f"tensorboard --logdir '{folder}'",
        "go on longer": " " * 12 + "train longer",
        "the downstream tasks": " " * 4 + f"python tools/evaluate.py all --checkpoint '{folder}'",
    }
    stopped = summary.stopped(job, "SIGTERM", "again").splitlines()
    assert stopped == [
        f"stopped by SIGTERM after 5 of 7 steps; saved {folder / 'checkpoints/step-00000007'}",
        "go on with: again",
    ]
    job.last_tag, memory[1:], job.totals["seconds"] = None, [], 0.0
    text = summary.closing(job, Ends(), 1.0, "longer")
    assert "checkpoint                none" in text and "3.50 GB (1 rank 3.00 GB" in text
    assert "900000000000 products/s" in text, "a run without a step has no time to divide by"
    assert "; saved nothing\n" in summary.stopped(job, "SIGTERM", "again")
