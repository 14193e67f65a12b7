"""Classes at a level of the category tree, and tested classes that training never saw."""

import dataclasses

import numpy as np
import pytest
import torch
from downstream_examples import embedding_set

from m5ds.data.shards.reader import RawProduct, ShardReader
from m5ds.downstream import settings
from m5ds.downstream.command import summary
from m5ds.downstream.embed.pretrained import build_head, load_pretrained
from m5ds.downstream.finetuning import job as finetune
from m5ds.downstream.measure.categories import CategoryLevel, parse_level
from m5ds.downstream.measure.results import Result, compare
from m5ds.downstream.report.document import Text
from m5ds.downstream.report.report import Loaded, build
from m5ds.downstream.report.tables import task_tables
from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig, LinearProbeConfig
from m5ds.downstream.tasks import tasks
from m5ds.downstream.tasks.baseline_jobs import evaluate_baseline
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.jobs import evaluate_task
from m5ds.downstream.tasks.labels import choose_classes, unseen_facts, unseen_line

CATEGORIES = ("Home / Lamps / Desk", "Toys", "Home / Lamps / Floor", "Home / Beds", "Toys / Cars")
UNCERTAINTY = tasks.Uncertainty(num_replicates=40)


@pytest.mark.parametrize(
    ("level", "names", "numbers"),
    [
        ("leaf", CATEGORIES, [0, 1, 2, 3, 4]),
        (3, CATEGORIES, [0, 1, 2, 3, 4]),
        (2, ("Home / Lamps", "Toys", "Home / Beds", "Toys / Cars"), [0, 1, 0, 2, 3]),
        (1, ("Home", "Toys"), [0, 1, 0, 0, 1]),
    ],
)
def test_a_level_is_the_first_names_of_the_path_and_shorter_paths_stay_whole(level, names, numbers):
    found = CategoryLevel.of(CATEGORIES, level)
    assert found.names == names and found.number_C.tolist() == numbers
    assert found.apply(np.array([4, -1, 2, 0])).tolist() == [numbers[4], -1, numbers[2], numbers[0]]


@pytest.mark.parametrize("level", [0, 4, -1, "top"])
def test_a_level_that_no_path_reaches_is_refused(level):
    with pytest.raises(ValueError, match=rf"category level {level}: must be leaf or between 1 and 3"):
        CategoryLevel.of(CATEGORIES, level)


def test_shards_without_categories_have_a_leaf_level_without_classes():
    assert CategoryLevel.of((), "leaf").apply(np.array([-1, -1])).tolist() == [-1, -1]


def test_the_command_line_takes_leaf_or_a_number():
    assert parse_level("leaf") == "leaf" and parse_level("2") == 2
    for text in ("0", "-1", "top", "1.5", ""):
        with pytest.raises(ValueError, match="--category-level must be leaf or a number from 1 on"):
            parse_level(text)


def test_unseen_categories_are_named_and_counted():
    label_N = np.array([0, 4, 4, 2, 3, 3, 3])
    facts = unseen_facts(label_N, np.isin(label_N, [0, 2]), CATEGORIES)
    assert facts == {
        "tested_categories": 4,
        "unseen_categories": 2,
        "products_of_unseen_categories": 5,
        "unseen_category_names": ["Home / Beds", "Toys / Cars"],
    }
    line = unseen_line({**facts, "products": 7})
    assert line.startswith("2 of 4 tested categories are unseen in training, with 5 of 7 products")
    assert "Home / Beds; Toys / Cars. A coarser category_level" in line
    assert unseen_line({}) == unseen_line(facts | {"unseen_category_names": []}) == ""
    many = unseen_facts(np.arange(5), np.zeros(5, bool), CATEGORIES)
    assert "Home / Lamps / Desk; Toys; Home / Lamps / Floor and 2 more." in unseen_line({**many, "products": 5})


def test_accuracy_of_seen_categories_stands_beside_that_of_all():
    """Four products of classes that training has, two of one that it lacks; three of the four are right."""
    label_N = np.array([0, 0, 1, 1, 2, 2, -1])
    logits_NC = np.eye(3)[[0, 0, 1, 0, 2, 2, 0]]
    classes = choose_classes(np.array([0, 0, 1]), ("a", "b", "c"), minimum=1, rare="keep")
    ids = [f"p{n}" for n in range(7)]
    table = tasks.classification(ids, label_N, logits_NC[None], classes, UNCERTAINTY)
    assert table.metrics["accuracy"].estimate == pytest.approx(3 / 6)
    assert table.metrics["seen_accuracy"].estimate == pytest.approx(3 / 4)
    assert table.facts["unseen_category_names"] == ["c"] and table.facts["products_of_unseen_categories"] == 2
    assert (table.facts["tested_categories"], table.facts["unseen_categories"]) == (3, 1)
    seen = tasks.classification(ids[:4], label_N[:4], logits_NC[None, :4], classes, UNCERTAINTY)
    assert "seen_accuracy" not in seen.metrics and seen.facts["unseen_category_names"] == []


def test_of_several_classifiers_each_counts_where_it_was_taught():
    """The second classifier never saw class 1: product p2 is right under the first, and there alone."""
    label_N = np.array([0, 0, 1, 2])
    first = np.eye(3)[[0, 1, 1, 0]].astype(np.float32)
    second = first.copy()
    first[:, 2] = second[:, 1:] = second[:, 2] = -np.inf
    classes = choose_classes(np.array([0, 1, 2]), ("a", "b", "c"), minimum=1, rare="keep")
    table = tasks.classification(list("pqrs"), label_N, np.stack([first, second]), classes, UNCERTAINTY)
    assert table.metrics["accuracy"].estimate == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert table.metrics["seen_accuracy"].estimate == pytest.approx((1 + 0.5 + 1) / 3)
    assert table.facts["unseen_category_names"] == ["c"]


def result(level=None, facts=None, task="classification", stage="pretrain"):
    classes = choose_classes(np.array([0, 0, 1]), ("a", "b", "c"), minimum=1, rare="keep")
    table = tasks.classification(["p", "q", "r"], np.array([0, 1, 2]), np.eye(3)[None], classes, UNCERTAINTY)
    return Result(
        task=task,
        stage=stage,
        source="run",
        fingerprint="f",
        shards="none",
        manifest_hash="m",
        split="test",
        settings={} if level is None else {"category_level": level},
        tables=[table],
    )


def test_terminal_and_report_say_which_categories_were_unseen(tmp_path):
    text = summary(result(1), tmp_path)
    assert "category_level 1" in text and "1 of 3 tested categories are unseen in training" in text
    assert "unseen_category_names" not in text and "seen_accuracy" in text
    blocks = task_tables("classification", [result()])
    assert any(isinstance(block, Text) and "unseen in training" in block.text for block in blocks)
    assert not any("category names" in getattr(block, "caption", "") for block in blocks)


def test_results_of_two_levels_are_neither_compared_nor_reported_together(tmp_path):
    for one, other in ((result(1), result()), (result(2), result(1))):
        with pytest.raises(ValueError, match="different category levels"):
            compare(one, other, "test", "accuracy")
    compare(result(), result("leaf"), "test", "accuracy", num_replicates=20)
    loaded = [Loaded(tmp_path, one, {"command": "c", "time": "t"}) for one in (result(1), result(2, stage="other"))]
    with pytest.raises(ValueError, match="results of category levels 1, 2"):
        build(loaded)


def test_the_settings_take_leaf_or_a_number(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text("name: d\ntrain: {epochs: 1}\n")
    assert settings.load(path).category_level == "leaf"
    assert settings.load(path, ["category_level=1"]).category_level == 1
    for text in ("0", "top", "1.5"):
        with pytest.raises(ValueError, match="category_level"):
            settings.load(path, [f"category_level={text}"])


def test_a_finetuning_run_of_another_level_does_not_resume(tmp_path):
    def saved(**more):
        state = {"finetune": {"pretrained_fingerprint": "f", "settings": {"classification": {}, **more}}}
        return type("Found", (), {"state": state, "root": tmp_path, "tag": "step-00000001"})()

    now = {"pretrained_fingerprint": "f", "settings": {"classification": {}, "category_level": 1}}
    finetune._check_same_finetuning(saved(category_level=1), now)
    for other in (saved(), saved(category_level=2)):
        with pytest.raises(ValueError, match="was finetuned at category_level (leaf|2), not 1"):
            finetune._check_same_finetuning(other, now)


@pytest.fixture(scope="module")
def top(shards):
    """The quickstart's shards at the first level."""
    config = DownstreamConfig(
        name="top",
        test_split="validation",
        num_replicates=20,
        category_level=1,
        classification=ClassificationConfig(rare_classes="keep"),
        linear_probe=LinearProbeConfig(inverse_regularization=[1.0], label_fractions=[1.0], alone=[]),
    )
    return Evaluation(config, str(shards))


def test_every_task_and_baseline_reads_the_labels_of_the_level(top, exported):
    expected = {product.id: product.category[0] for product in products_of(top.shards, "validation")}
    assert 1 < len(top.level.names) < len(top.manifest.categories)
    assert set(expected.values()) <= set(top.level.names)
    names = [top.level.names[label] for label in top.train_label_N]
    train = [product.category[0] for product in products_of(top.shards, "train")]
    assert names == train
    assert sorted(top.all_labels().tolist()) == sorted(
        top.level.names.index(name) for name in [*train, *expected.values()]
    )
    pretrained = load_pretrained(exported)
    found = [evaluate_task(task, top, pretrained, "pretrain") for task in ("clustering", "linear_probe")]
    found += [one for one in evaluate_baseline("tf-idf", top) if one.task in ("clustering", "classification")]
    for one in found:
        table = one.tables[0]
        told = {name: top.level.names[int(label)] for name, label in zip(table.ids, table.values["label"], strict=True)}
        assert told == {name: expected[name] for name in told} and len(told) > 2, one.task
        assert one.settings["category_level"] == 1
    relevant = {}
    for example in evaluate_task("coarse_retrieval", top, pretrained, "pretrain").extras["examples"]:
        relevant |= {(example["query"], hit["id"]): hit["relevant"] for hit in example["found"]}
    assert relevant == {pair: expected[pair[0]] == expected[pair[1]] for pair in relevant}


def products_of(shards, split):
    reader = ShardReader(shards, split)
    return [reader.read(shard, i) for shard, size in enumerate(reader.shard_sizes) for i in range(size)]


def test_a_head_of_other_classes_is_refused(top, exported):
    def head(num_classes):
        return build_head(
            {
                "dense.weight": torch.zeros(4, 6),
                "dense.bias": torch.zeros(4),
                "output.weight": torch.zeros(num_classes, 4),
                "output.bias": torch.zeros(num_classes),
            }
        )

    pretrained = load_pretrained(exported)
    top.check_head(pretrained)
    fitting = dataclasses.replace(pretrained, head=head(len(top.level.names)))
    top.check_head(fitting)
    with pytest.raises(ValueError, match="was finetuned for 99 classes"):
        top.check_head(dataclasses.replace(pretrained, head=head(99)))
    state = {"finetune": {"settings": {"category_level": 2}}}
    with pytest.raises(ValueError, match="category_level 2"):
        top.check_head(dataclasses.replace(fitting, state=state))


def test_a_level_deeper_than_any_path_names_the_shards(top):
    deep = Evaluation(dataclasses.replace(top.settings, category_level=9), top.shards)
    with pytest.raises(ValueError, match=r"shards: category level 9: must be leaf or between 1 and \d"):
        _ = deep.level


def test_products_of_a_level_keep_everything_but_the_label():
    level = CategoryLevel.of(CATEGORIES, 1)
    product = RawProduct(
        id="p", product=1, title="t", description="", attributes=[], category=["Toys", "Cars"], label=4,
        present=frozenset(), media={},
    )  # fmt: skip
    assert level.relabel(product) == dataclasses.replace(product, label=1)
    assert level.relabel(dataclasses.replace(product, label=-1)).label == -1


def test_embedding_sets_come_by_id():
    one = embedding_set(np.arange(6).reshape(3, 2), [2, 0, 1], ids=["b", "c", "a"])
    assert one.by_id().ids == ("a", "b", "c") and one.by_id().label_N.tolist() == [1, 2, 0]
