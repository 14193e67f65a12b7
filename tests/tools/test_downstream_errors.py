"""Bad input to the downstream tools: exit code 2 and one line that names what is wrong and the remedy."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.tokenizer import train_tokenizer
from m5ds.downstream import command
from m5ds.downstream.embed import command as embed_command
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.train import runtime

ROOT = Path(__file__).resolve().parents[2]
from downstream_examples import tiny_run  # noqa: E402

KINDS = {
    "labelled": lambda i: {"category": [f"c{i % 4}"]},
    "unlabelled": lambda i: {},
    "unique": lambda i: {"category": [f"c{i}"]},
    "single": lambda i: {"category": ["only"]},
    "lonely": lambda i: {"category": ["lonely" if i == 0 else f"c{i % 4}"]},
}
"""Name of a shard directory -> what its product i has besides a title and a table."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with these shards, an untrained tiny model over them, and a folder without any checkpoint."""
    root = tmp_path_factory.mktemp("errors")
    for name, more in KINDS.items():
        lines = [
            json.dumps({"id": f"p{i}", "title": f"lamp {i} of {i % 7}", "attributes": {"Watt": i}, **more(i)})
            for i in range(40)
        ]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        build_shards(root / f"{name}.jsonl", root / name, BuildOptions(ratios=(0.8, 0.0, 0.2)))
    tokenizer = train_tokenizer([f"lamp {i} of Watt" for i in range(200)], 290, root / "model" / "tokenizer")
    M5ForPretraining(M5Config.for_tokenizer(tiny_run(root).model, tokenizer)).save_pretrained(root / "model")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def run(place, monkeypatch, capfd):
    """Run a tool in the folder; returns (exit code, stderr without progress bars)."""

    def run(main, *arguments):
        monkeypatch.chdir(place)
        monkeypatch.setattr(runtime, "start_process_group", lambda: None)
        monkeypatch.setattr(runtime, "end_process_group", lambda: None)
        monkeypatch.setattr(sys, "argv", ["tool", *arguments])
        code = main()
        lines = capfd.readouterr().err.replace("\r", "\n").splitlines()
        return code, [line for line in lines if line.strip() and "%|" not in line]

    return run


def task_of(task, *more, checkpoint="model", shards="labelled"):
    config = str(ROOT / "configs/downstream/base.yaml")
    flags = ["--config", config, "--ds_config", str(ROOT / "configs/zero3.json"), "--checkpoint", checkpoint]
    given = ["--shards", shards] if shards else []
    fixed = ["num_replicates=20", "output_dir=out", "instance_retrieval.states=fused"]
    return [task, *flags, *given, *fixed, *more]


TEXTS = ("instance_retrieval.query_modalities=[text]", "instance_retrieval.gallery_modalities=[text]")
TASKS = {
    "labels absent, classification": (
        task_of("classification", shards="unlabelled"),
        "unlabelled: labels absent: none of the 32 training products has one; build the shards from a catalogue",
    ),
    "labels absent, probe": (
        task_of("linear_probe", "linear_probe.inverse_regularization=[1.0]", shards="unlabelled"),
        "linear_probe on test of unlabelled: unlabelled: labels absent: none of the 32 training products has one",
    ),
    "no split to choose the probe's strength on": (
        task_of("linear_probe"),
        "there is no split validation to choose linear_probe.inverse_regularization on; give linear_probe.inverse_reg",
    ),
    "no split to choose on, all tasks": (
        task_of("all", "classification.patience=0"),
        "there is no split validation to choose linear_probe.inverse_regularization on; give linear_probe.inverse_reg",
    ),
    "a probe of nothing": (
        task_of("linear_probe", "linear_probe.inverse_regularization=[]"),
        "linear_probe.inverse_regularization: ",
    ),
    "too few labels to probe": (
        task_of(
            "linear_probe",
            "linear_probe.inverse_regularization=[1.0]",
            "linear_probe.label_fractions=[1.0e-6]",
            "linear_probe.alone=[]",
        ),
        "linear_probe.label_fractions: a draw of 0 labels holds 0 categories, a probe needs two; ask for a larger",
    ),
    "labels absent, retrieval": (
        task_of("coarse_retrieval", shards="unlabelled"),
        "coarse_retrieval on test of unlabelled: queries: none of the 8 products has a label; build",
    ),
    "labels absent, clustering": (
        task_of("clustering", shards="unlabelled"),
        "clustering on test of unlabelled: clustering: none of the 8 products has a label",
    ),
    "labels absent, robustness": (
        task_of("robustness", "robustness.subsets=false", "robustness.by_modality=false", shards="unlabelled"),
        "no condition could be scored: queries: none of the 8 products has a label; build the shards",
    ),
    "a class with one product": (
        task_of("classification", shards="lonely"),
        "lonely: 1 of 5 categories have fewer than 2 training products (first: 'lonely'); set"
        " classification.rare_classes=drop",
    ),
    "only classes with one product": (
        task_of("classification", "classification.rare_classes=drop", shards="unique"),
        "0 of 32 are left; set classification.rare_classes=keep or lower min_class_products",
    ),
    "one class": (task_of("classification", shards="single"), "at least two categories"),
    "one class, clustering": (task_of("clustering", shards="single"), "use shards with several"),
    "a cluster a product": (task_of("clustering", shards="unique"), "a category of its own"),
    "no positives": (
        task_of("coarse_retrieval", shards="unique"),
        "none of the 8 has a positive in the gallery of 8; use a gallery that shares their labels",
    ),
    "no positives, instances": (
        task_of("instance_retrieval", "instance_retrieval.instance=group", *TEXTS),
        "none of the 8 has a positive in the gallery",
    ),
    "empty subset of queries": (
        task_of("coarse_retrieval", "coarse_retrieval.query_modalities=[]"),
        "query_modalities: modality subset is empty; name at least one of image, text",
    ),
    "empty subset for clustering": (
        task_of("clustering", "clustering.modalities=[]"),
        "clustering.modalities: modality subset is empty",
    ),
    "empty subset for the classifier": (
        task_of("classification", "classification.modalities=[]"),
        "classification.modalities: modality subset is empty",
    ),
    "unknown modality": (
        task_of("clustering", "clustering.modalities=[smell]"),
        "clustering.modalities: modality 'smell' is not one of the model's",
    ),
    "modalities that no product has": (
        task_of("coarse_retrieval", "coarse_retrieval.query_modalities=[video]"),
        "queries: no product has any of video; choose other modalities",
    ),
    "unknown task": (task_of("sorting"), "invalid choice: 'sorting' (choose from"),
    "no such checkpoint": (task_of("clustering", checkpoint="nowhere"), "nowhere: no such checkpoint; name a run"),
    "no checkpoint in it": (task_of("clustering", checkpoint="empty"), "empty: holds no complete checkpoint"),
    "no shards said": (task_of("clustering", shards=""), "--shards: model does not say what it was trained on"),
    "no such shards": (task_of("clustering", shards="nowhere"), "nowhere/manifest.json: no such file; build"),
    "no such split": (
        task_of("clustering", "test_split=tset"),
        "labelled: no split 'tset'; they have train, test: set test_split to one of these",
    ),
    "no such configuration": (["clustering", "--checkpoint", "model", "--config", "no.yaml"], "no.yaml: no such conf"),
    "unknown key": (task_of("clustering", "clustering.sedes=[1]"), "unknown key clustering.sedes"),
    "no seeds": (task_of("clustering", "clustering.seeds=[]"), "clustering.seeds: "),
    "no k": (task_of("coarse_retrieval", "coarse_retrieval.ks=[]"), "coarse_retrieval.ks: "),
    "no protocol": (task_of("coarse_retrieval", "coarse_retrieval.protocols=[]"), "coarse_retrieval.protocols: "),
    "dense states of a pretrained model": (
        task_of("clustering", "clustering.states=dense"),
        "states dense need a checkpoint of tools/finetune.py classification; use fused",
    ),
    "tokens of a model without": (
        task_of("robustness", "robustness.policies=[token]"),
        "robustness.policies: token needs a model that was trained with it",
    ),
    "nothing to resume": (task_of("clustering", "--resume", "auto"), "--resume auto: clustering trains nothing"),
    "every product finds itself": (
        task_of("instance_retrieval", "instance_retrieval.query_modalities=[text,table]"),
        "set query_modalities and gallery_modalities to different subsets",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_bad_input_to_a_task_is_one_line_with_a_remedy(run, name):
    arguments, message = TASKS[name]
    tool = command.FINETUNE if arguments[0] in ("classification", "all") else command.EVALUATE
    code, lines = run(partial(command.main, tool), *arguments)
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and message in lines[0], lines[0]


EMBED = {
    "empty subset": (["--modalities", ","], "--modalities: modality subset is empty; name at least one of image"),
    "unknown modality": (["--modalities", "image,smell"], "--modalities: modality 'smell' is not one of the model's"),
    "unknown split": (["--split", "nowhere"], "no split 'nowhere'; they have train, test"),
    "unknown states": (["--states", "raw"], "argument --states: invalid choice: 'raw'"),
    "no classifier": (["--states", "dense"], "states dense need a checkpoint of tools/finetune.py classification"),
    "no batch": (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    "a file": (["--out", "single.jsonl"], "single.jsonl: is a file; choose a folder for --out"),
}


@pytest.mark.parametrize("name", EMBED)
def test_bad_input_to_embedding_is_one_line_with_a_remedy(run, name):
    more, message = EMBED[name]
    code, lines = run(embed_command.main, "--checkpoint", "model", "--shards", "labelled", "--out", "out/emb", *more)
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and message in lines[0], lines[0]


def test_embeddings_of_another_model_are_not_continued(run, place):
    arguments = ["--shards", "labelled", "--out", "out/continued", "--modalities", "text"]
    assert run(embed_command.main, "--checkpoint", "model", *arguments)[0] == 0
    written = sorted((place / "out/continued").glob("*.parquet"))
    code, lines = run(embed_command.main, "--checkpoint", "model", *arguments[:-1], "table")
    assert code == 2 and "holds embeddings with modalities ('text',), not ('table',); choose another --out" in lines[0]
    info = json.loads((place / "out/continued/embeddings.json").read_text())
    (place / "out/continued/embeddings.json").write_text(json.dumps(info | {"model": "0" * 64}))
    code, lines = run(embed_command.main, "--checkpoint", "model", *arguments)
    assert code == 2 and "holds embeddings with model '000000" in lines[0] and "choose another --out" in lines[0]
    assert sorted((place / "out/continued").glob("*.parquet")) == written
