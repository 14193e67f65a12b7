"""Which results the report draws, and with what."""

from types import SimpleNamespace

import pytest
from report_cases import headings, loaded, result, scores, section, table

from m5ds.downstream.measure.bootstrap import Interval
from m5ds.downstream.measure.results import Table
from m5ds.downstream.report import report
from m5ds.downstream.report.document import Drawing
from m5ds.downstream.report.report import build


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, with its arguments; None where the name is in `nothing`."""
    calls, nothing = [], set()

    def replace(name):
        def draw(*arguments):
            calls.append((name, *arguments))
            return None if name in nothing else f"<svg>{name}</svg>"

        monkeypatch.setattr(report.plots, name, draw)

    for name in ("subset_lattice", "missing_curves", "noise_bars", "heat_map", "long_tail", "pretraining_curve"):
        replace(name)
    for name in ("label_curves", "learning_curve", "projection"):
        replace(name)
    return SimpleNamespace(calls=calls, nothing=nothing)


def drawings(document):
    blocks = section(document, "Plots")
    return [(block.svg[5:-6], block.caption, block.small) for block in blocks if isinstance(block, Drawing)]


def test_each_result_is_drawn_with_what_it_holds(drawn, monkeypatch, tmp_path):
    correlation = {name: {"cosine": [[1]], "names": [name]} for name in ("fused", "contrastive")}
    harmony = {"kind": "cosine", "weighs": "losses", "names": ["image"], "weight": [[1]]}
    condition = Table(
        name="drop: x",
        metrics={"ap@10": Interval(estimate=1, low=1, high=1)},
        facts={"kind": "subset", "policy": "drop", "scored_queries": 1},
    )
    robust = result("robustness", tables=[condition], extras={"correlation": correlation, "harmony": harmony})
    classified = result("classification", "finetune", [table("test", accuracy=scores(1))])
    clustered = result("clustering", "untrained", extras={"projection": {"method": "UMAP"}})
    plain = result("clustering", "pretrain")
    probed = result("linear_probe", "untrained")
    searched = result("coarse_retrieval", "untrained")
    monkeypatch.setattr(report, "_run_records", lambda source: [source])
    monkeypatch.setattr(report, "_categories", lambda result, shards: (result.stage, shards))
    results = [classified, probed, clustered, plain, searched, robust]
    source = plain.source
    assert drawings(build(loaded(*results), shards="moved")) == [
        (
            "subset_lattice",
            "Every modality subset (pretrain): mAP@10 of coarse retrieval over the products that have one.",
            False,
        ),
        (
            "missing_curves",
            "mAP@10 against the missing rate; shaded: 95 % interval. Line styles on the right as on the left.",
            False,
        ),
        ("noise_bars", "Noise: shuffled pairs and damaged files.", False),
        ("heat_map", "Mean cosine between modalities, fused states (pretrain).", True),
        ("heat_map", "Mean cosine between modalities, contrastive states (pretrain).", True),
        (
            "heat_map",
            "Modality weights (pretrain), of losses: off the diagonal of each pair's contrastive loss, on it of each"
            " modality's masked task; mean over the split.",
            True,
        ),
        ("long_tail", "The long tail.", False),
        ("pretraining_curve", f"Learning curve of pretraining ({source}).", True),
        ("label_curves", "Linear probe: accuracy against the number of labels; shaded: 95 % interval.", False),
        ("learning_curve", "Learning curve of classification (finetune).", True),
        ("projection", "UMAP of the embeddings (untrained), the most frequent categories in color.", True),
        ("projection", "t-SNE of the embeddings (pretrain), the most frequent categories in color.", True),
    ]  # fmt: skip
    given = {}
    for name, *arguments in drawn.calls:
        given.setdefault(name, []).append(arguments)
    stages = {
        name: [[(one.task, one.stage) for one in arguments[0]] for arguments in given[name]]
        for name in ("missing_curves", "noise_bars", "long_tail", "label_curves")
    }
    assert stages["missing_curves"] == stages["noise_bars"] == [[("robustness", "pretrain")]]
    assert stages["long_tail"] == [[("classification", "finetune"), ("coarse_retrieval", "untrained")]]
    assert given["long_tail"][0][1] == {"classification": "accuracy", "coarse_retrieval": "mAP@10"}
    assert stages["label_curves"] == [[("linear_probe", "untrained")]]
    assert given["heat_map"] == [
        [[[1]], ["fused"], "fused"],
        [[[1]], ["contrastive"], "contrastive"],
        [[[1]], ["image"], "harmony: cosine"],
    ]
    assert given["pretraining_curve"] == [[[source]]]
    assert [arguments[1] for arguments in given["projection"]] == [("untrained", "moved"), ("pretrain", "moved")]


def test_what_holds_nothing_to_draw_is_left_out(drawn):
    drawn.nothing |= {"missing_curves", "noise_bars", "long_tail", "pretraining_curve", "label_curves", "projection"}
    assert "Plots" not in headings(build(loaded(result("clustering"))))
