"""The report holds what the results hold, in one page that loads nothing."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.measure.bootstrap import Interval
from m5ds.downstream.measure.frequency import SHARES
from m5ds.downstream.measure.results import Result, Table, launched, write_result
from m5ds.downstream.report.document import Document, Grid, Text
from m5ds.downstream.report.report import build, load_results, write_report
from m5ds.downstream.settings import ClusteringConfig, RetrievalConfig
from m5ds.downstream.tasks import tasks
from m5ds.downstream.tasks.labels import choose_classes

LABELS = np.arange(60) % 4
TRAIN = np.repeat(np.arange(4), [40, 20, 10, 5])
UNCERTAINTY = tasks.Uncertainty(num_replicates=50, train_label_N=TRAIN, rule=SHARES)


HARMONY = {"kind": "cosine", "weighs": "losses", "names": ["image", "text"], "weight": [[0.25, 0.75], [0.75, None]]}
CORRELATION = {"correlation": {"fused": {"names": ["image", "text"], "cosine": [[1.0, None], [None, 1.0]]}}}


def make(task, stage, tables, **extras):
    return Result(
        task=task,
        stage=stage,
        source=f"run <{stage}>",
        fingerprint="0" * 64,
        shards="no/such/shards",
        manifest_hash="m",
        split="test",
        settings={},
        tables=tables,
        extras=extras,
    )


def robustness_tables():
    value = Interval(estimate=0.5, low=0.4, high=0.6)
    tables = []
    for subset in (["image"], ["text"], ["image", "text"]):
        facts = {"kind": "subset", "modalities": subset, "policy": "drop", "scored_queries": 9}
        tables.append(Table(name="drop: " + "+".join(subset), metrics={"ap@10": value}, facts=facts))
    for name in ("any", "text"):
        for rate in (0.0, 0.5):
            facts = {"kind": "missing", "modality": name, "rate": rate, "policy": "drop", "scored_queries": 9}
            tables.append(Table(name=f"drop: missing {name} {rate:g}", metrics={"ap@10": value}, facts=facts))
    for policy, estimate in (("drop", 0.5), ("zeros", 0.45)):
        value = Interval(estimate=estimate, low=0.4, high=0.6)
        facts = {"kind": "shuffled", "rate": 0.5, "policy": policy, "scored_queries": 9}
        tables.append(Table(name=f"{policy}: shuffled 0.5", metrics={"ap@10": value}, facts=facts))
    return tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("results")
    random = np.random.default_rng(0)
    for stage, noise in (("untrained", 2.0), ("pretrain", 0.3)):
        products = embedding_set(np.eye(4)[LABELS] + noise * random.normal(size=(60, 4)), LABELS)
        tables, extras = tasks.coarse_retrieval(products, products, RetrievalConfig(), UNCERTAINTY)
        write_result(tmp_path / f"coarse-{stage}", make("coarse_retrieval", stage, tables, **extras))
        tables = tasks.clustering(products, ClusteringConfig(seeds=[0]), UNCERTAINTY)
        points = {"xy": random.normal(size=(60, 2)).tolist(), "label": LABELS.tolist()}
        write_result(tmp_path / f"clustering-{stage}", make("clustering", stage, tables, projection=points))
    classes = choose_classes(TRAIN, ("a", "b", "c", "d"), minimum=1, rare="keep")
    table = tasks.classification(products.ids, LABELS, products.vector_ND[None], classes, UNCERTAINTY)
    curve = [{"step": s, "kind": "train", "loss/classification": 1 / (s + 1)} for s in range(5)]
    write_result(tmp_path / "classification", make("classification", "finetune", [table], learning_curve=curve))
    for stage, noise in (("untrained", 2.0), ("pretrain", 0.3)):
        logits_NC = np.eye(4)[LABELS] + noise * random.normal(size=(60, 4))
        tables = []
        for name, labels in (("10 % of the labels", 6.0), ("all labels", 60.0), ("text only", 60.0)):
            table = tasks.classification(products.ids, LABELS, logits_NC[None], classes, UNCERTAINTY, name)
            table.facts |= {"labels": labels, "draws": 1, "inverse_regularization": noise}
            tables.append(table)
        reason = {"not_scored": {"5 % of the labels": "a draw of 1 labels holds 1 categories"}}
        write_result(tmp_path / f"probe-{stage}", make("linear_probe", stage, tables, **reason))
    extras = CORRELATION | {"harmony": HARMONY}
    write_result(tmp_path / "robustness", make("robustness", "pretrain", robustness_tables(), **extras))
    return tmp_path


@pytest.fixture(scope="module")
def document(folder):
    return build(load_results([folder]))


class Links(HTMLParser):
    """Everything the page would load, and whether its tags nest."""

    def __init__(self):
        super().__init__()
        self.loaded, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def test_page_is_self_contained_and_well_formed(document, tmp_path):
    page, _ = write_report(document, tmp_path / "report")
    links = Links()
    links.feed(page.read_text())
    assert not links.open
    assert all(value.startswith(("#", "data:")) for value in links.loaded), links.loaded
    assert "@import" not in page.read_text() and "url(http" not in page.read_text()


def test_every_task_stage_and_comparison_is_there(document):
    text = document.to_markdown()
    for wanted in ("Classification", "Clustering", "Coarse retrieval", "Robustness", "Paired comparisons", "Commands"):
        assert f"## {wanted}" in text, wanted
    assert "coarse_retrieval: pretrain - untrained | ap@10" in text
    for table in ("10 % of the labels", "all labels"):
        assert f"linear_probe, {table}: pretrain - untrained | accuracy" in text, table
    assert "| stage | accuracy | macro_accuracy | top5_accuracy | inverse regularization |" in text
    assert "text only, %: " in text and "text only: pretrain - untrained" not in text
    assert "5 % of the labels (untrained): not scored, a draw of 1 labels" in text
    assert re.search(r"pretrain - untrained \| ap@10 \| .* \| yes", text)
    assert "paper," not in text


def test_drawings_are_valid_svg_and_cover_what_the_results_hold(document):
    drawings = [block for block in document.blocks if hasattr(block, "svg")]
    captions = " ".join(drawing.caption for drawing in drawings)
    for wanted in (
        "modality subset",
        "missing rate",
        "Noise",
        "long tail",
        "t-SNE",
        "Learning curve",
        "Linear probe",
        "Mean cosine",
        "Modality w",
    ):
        assert wanted in captions, wanted
    for drawing in drawings:
        ElementTree.fromstring(drawing.svg)


def test_rankings_have_a_row_for_each_k_and_policies_stand_side_by_side(document):
    text = document.to_markdown()
    assert "| stage | k | ap@k | prec@k | recall@k | mrr@k | ndcg@k |" in text
    assert re.search(r"\| pretrain \| 10 \| \d", text)
    assert "| condition | ap@10 drop | ap@10 zeros | queries |" in text
    assert "| shuffled 0.5 | 50.00 [40.00, 60.00] | 45.00 [40.00, 60.00] | 9 |" in text


def test_weights_of_the_losses_are_drawn_with_their_numbers(document):
    (drawing,) = [b for b in document.blocks if "Modality weights" in getattr(b, "caption", "")]
    for wanted in ("0.25", "0.75", "harmony: cosine"):
        assert f">{wanted}<" in drawing.svg
    assert "nan" not in drawing.svg


@pytest.mark.parametrize(
    ("extras", "line"),
    [
        ({"harmony": {"kind": "none"}}, "none, the model's harmony.kind is none"),
        ({}, "not in this result; run its robustness task again"),
        ({"harmony": HARMONY | {"weight": [[None, None], [None, None]]}}, "no product that any of the losses is of"),
    ],
)
def test_a_run_without_weights_says_so_in_one_line(extras, line, tmp_path):
    write_result(tmp_path, make("robustness", "pretrain", robustness_tables(), **extras))
    document = build(load_results([tmp_path]))
    (text,) = [block.text for block in document.blocks if "Modality weights" in getattr(block, "text", "")]
    assert line in text
    assert not [block for block in document.blocks if "Modality weights" in getattr(block, "caption", "")]


def test_table_3_pairs_each_row_with_its_own_accuracy(tmp_path):
    """A baseline's row once had the finetuned model's accuracy, and every training seed that of the last one."""
    products = embedding_set(np.eye(4)[LABELS], LABELS)
    retrieval, _ = tasks.coarse_retrieval(products, products, RetrievalConfig(), UNCERTAINTY)
    for number, (stage, seed) in enumerate([("tf-idf", 0), ("pretrain", 1), ("pretrain", 2)]):
        value = Interval(estimate=0.1 * (number + 1), low=0.0, high=1.0)
        table = Table(name="test", metrics={"accuracy": value})
        coarse = make("coarse_retrieval", stage, retrieval)
        coarse.source, coarse.settings = f"run {seed}", {"name": f"seed {seed}"}
        write_result(tmp_path / f"coarse-{seed}", coarse)
        finetuned = "finetune" if stage == "pretrain" else stage
        result = make("classification", finetuned, [table], pretrained=coarse.source)
        write_result(tmp_path / f"classification-{seed}", result)
    text = build(load_results([tmp_path])).to_markdown()
    for row in ("ours, tf-idf | 10.00", "ours, pretrain, seed 1 | 20.00", "ours, pretrain, seed 2 | 30.00"):
        assert f"| {row} |" in text


def test_commands_name_the_launcher_and_what_they_made():
    command = "tools/finetune.py --local_rank=1 all --checkpoint 'my run'"
    assert launched(command, 2) == "deepspeed --num_gpus 2 tools/finetune.py all --checkpoint 'my run'"
    assert launched(command, 1) == "python tools/finetune.py all --checkpoint 'my run'"


def test_pretraining_of_a_run_that_is_still_there_is_drawn_and_its_command_given(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    records = [{"step": s, "kind": "train", "loss/total": 9.0 - s} for s in range(3)]
    records.append({"step": 2, "kind": "validation", "retrieval/average/ratio": 4.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "run.json").write_text(json.dumps([{"command": "m5ds/pretrain.py name=run", "world_size": 2}]))
    result = make("robustness", "pretrain", robustness_tables())
    result.source = str(run / "checkpoints" / "step-00000002")
    write_result(tmp_path / "robustness", result)
    text = build(load_results([tmp_path / "robustness"])).to_markdown()
    assert "Learning curve of pretraining" in text
    assert f"# -> {run}\ndeepspeed --num_gpus 2 m5ds/pretrain.py name=run\n# -> {tmp_path / 'robustness'}\n" in text


def test_papers_numbers_stand_beside_ours_only_for_its_data(folder):
    text = build(load_results([folder]), m5product=True).to_markdown()
    assert "| paper, finetune, whole, + audio | 86.57 | 73.77 | 76.17 | 74.73 | 74.01 |" in text
    assert "| ours, pretrain |" in text
    assert "| paper, image + text, SCALE, subset | 84.23 | 75.81 |" in text


def test_results_of_several_seeds_get_intervals_over_seeds_and_products(tmp_path):
    random = np.random.default_rng(0)
    for stage, noise in (("untrained", 3.0), ("pretrain", 0.2)):
        for seed in range(3):
            products = embedding_set(np.eye(4)[LABELS] + noise * random.normal(size=(60, 4)), LABELS)
            tables, _ = tasks.coarse_retrieval(products, products, RetrievalConfig(), UNCERTAINTY)
            write_result(tmp_path / f"coarse-{stage}-{seed}", make("coarse_retrieval", stage, tables))
            tables = tasks.clustering(products, ClusteringConfig(seeds=[0]), UNCERTAINTY)
            write_result(tmp_path / f"clustering-{stage}-{seed}", make("clustering", stage, tables))
    text = build(load_results([tmp_path])).to_markdown()
    assert "## Over training seeds" in text
    for metric in ("ap@10", "nmi"):
        row = re.search(rf": pretrain - untrained \| {metric} \| ([\d.]+) \[([\d.]+), ([\d.]+)\]", text)
        assert row and 0 < float(row[2]) < float(row[1]) < float(row[3])


def test_titles_are_escaped(document):
    page = document.to_html()
    assert "run &lt;pretrain&gt;" in page and "run <pretrain>" not in page


def test_missing_pictures_are_said_and_stop_nothing(document):
    assert "no pictures, no/such/shards" in document.to_markdown()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no results.json in or under it"):
        load_results([tmp_path])


def test_markdown_cells_keep_their_column():
    document = Document("t", [Grid(["a", "b"], [["x|y", "1"]], "cap"), Text("end")])
    assert "| x\\|y | 1 |" in document.to_markdown()
