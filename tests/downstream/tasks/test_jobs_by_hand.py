"""What several tasks share, and what each task hands on, over made-up shards and embeddings."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import NAMES, embedding_set

from m5ds.downstream.measure.categories import CategoryLevel
from m5ds.downstream.measure.frequency import COUNTS, SHARES
from m5ds.downstream.settings import ClassificationConfig, ClusteringConfig, DownstreamConfig, RetrievalConfig
from m5ds.downstream.tasks import evaluation as evaluating
from m5ds.downstream.tasks import jobs
from m5ds.downstream.tasks.evaluation import Evaluation

CATEGORIES = ("a / x", "a / y", "b")
SPLITS = {"train": [0, 1, 1, 2, -1], "test": [2, 0], "validation": [1]}


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    """Shards of three splits; collects the splits that are opened for a model."""
    manifest = SimpleNamespace(categories=CATEGORIES, splits=SPLITS, hash="hash")
    found = []

    def data(shards, split, spec, tokenizer, **options):
        found.append((shards, split, spec, tokenizer, options))
        return SimpleNamespace(split=split)

    monkeypatch.setattr(evaluating, "read_manifest", lambda shards: manifest)
    monkeypatch.setattr(evaluating, "ShardReader", lambda shards, split: SimpleNamespace(split=split))
    monkeypatch.setattr(evaluating, "read_labels", lambda reader: np.array(SPLITS[reader.split]))
    monkeypatch.setattr(evaluating, "EvaluationData", data)
    return found


def evaluation(**options):
    return Evaluation(DownstreamConfig(**({"name": "n", "output_dir": "o"} | options)), "shards")


def pretrained(head=None, state=None):
    return SimpleNamespace(
        model=SimpleNamespace(names=NAMES, spec="spec"),
        tokenizer="tok",
        head=head,
        state=state,
        source="s",
        fingerprint="f",
    )


def test_a_stage_is_named_after_the_weights():
    assert jobs.stage_of(pretrained(), False) == "pretrain"
    assert jobs.stage_of(pretrained(head=1), False) == "finetune"
    assert jobs.stage_of(pretrained(head=1), True) == jobs.stage_of(pretrained(), True) == "untrained"


def test_labels_are_those_of_the_level():
    assert evaluation().train_label_N.tolist() == [0, 1, 1, 2, -1]
    top = evaluation(category_level=1)
    assert top.train_label_N.tolist() == [0, 0, 0, 1, -1]
    assert top.all_labels().tolist() == [0, 0, 0, 1, -1, 1, 0, 0]
    with pytest.raises(ValueError, match="^shards: category level 3"):
        _ = evaluation(category_level=3).level


def test_uncertainty_and_classes_are_as_configured():
    asked = evaluation(num_replicates=77, seed=5, frequency="shares")
    found = asked.uncertainty
    assert (found.num_replicates, found.seed, found.rule) == (77, 5, SHARES)
    assert found.train_label_N.tolist() == [0, 1, 1, 2, -1]
    assert evaluation().uncertainty.rule is COUNTS
    config = ClassificationConfig(min_class_products=2, rare_classes="keep")
    chosen = evaluation(classification=config).classes
    assert (chosen.count_C.tolist(), chosen.names) == ([1, 2, 1], CATEGORIES)
    with pytest.raises(ValueError, match="^shards: 2 of 3 categories have fewer than 2"):
        _ = evaluation().classes
    dropped = ClassificationConfig(min_class_products=1, rare_classes="drop")
    assert evaluation(classification=dropped).classes.dropped == ()


def test_a_classifier_sees_all_labels_unless_it_is_given_a_share(monkeypatch):
    whole = evaluation()
    assert whole.labelled_reader is whole.train_reader and whole.labelled_ids is None
    seen = []
    monkeypatch.setattr(
        evaluating, "drawn_labels", lambda reader, fraction, seed: seen.append((fraction, seed)) or "rows"
    )

    class Subset:
        split, shard_sizes = "validation", [2, 1]

        def __init__(self, reader, rows):
            assert rows == "rows"

        def index(self, shard):
            ids = [["p", "q"], ["r"]][shard]
            return SimpleNamespace(table={"id": SimpleNamespace(to_pylist=lambda: ids)})

    monkeypatch.setattr(evaluating, "SubsetReader", Subset)
    config = ClassificationConfig(label_fraction=0.5, min_class_products=1, rare_classes="keep")
    few = evaluation(classification=config, seed=3)
    assert few.labelled_ids == {"p", "q", "r"} and seen == [(0.5, 3)]
    assert few.all_classes.count_C.tolist() == [1, 2, 1]
    monkeypatch.setitem(SPLITS, "validation", [1, 2])
    assert few.classes.count_C.tolist() == [0, 1, 1]


def head(classes):
    return SimpleNamespace(output=SimpleNamespace(out_features=classes))


def saved(**settings):
    return {"finetune": {"settings": settings}}


def test_a_head_belongs_to_the_levels_classes():
    leaf, top = evaluation(), evaluation(category_level=1)
    leaf.check_head(pretrained())
    leaf.check_head(pretrained(head(3)))
    leaf.check_head(pretrained(head(3), saved()))
    leaf.check_head(pretrained(head(3), {}))
    top.check_head(pretrained(head(2), saved(category_level=1)))
    top.check_head(pretrained(head(2)))  # exported: the number of classes is all that is known
    for asked, model in (
        (leaf, pretrained(head(2))),
        (top, pretrained(head(2), saved(category_level=2))),
        (top, pretrained(head(2), saved())),
        (leaf, pretrained(head(2), saved())),
    ):
        with pytest.raises(ValueError, match="s was finetuned for 2 classes"):
            asked.check_head(model)


def test_each_split_and_transform_is_opened_once(opened):
    asked = evaluation(batch_size=9)
    tested = asked.data(pretrained())
    assert asked.data(pretrained()) is asked.split(pretrained(), "test") is tested
    other = asked.split(pretrained(), "train")
    assert other.split == "train" and asked.split(pretrained(), "train") is other
    damaged = asked.data(pretrained(), "damaged", "transform")
    assert damaged is not tested and len(opened) == 3
    shards, split, spec, tokenizer, options = opened[2]
    assert (shards, split, spec, tokenizer, options["transform"]) == ("shards", "test", "spec", "tok", "transform")
    assert (options["batch_size"], options["num_threads"]) == (9, asked.settings.data.num_threads)
    assert options["relabel"] == asked.level.relabel and opened[0][4]["transform"] is None
    with pytest.raises(ValueError, match=r"no split 'x'; they have train, test, validation: set gallery_split"):
        asked.split(pretrained(), "x")
    with pytest.raises(ValueError, match="set test_split to one of these"):
        evaluation(test_split="y").data(pretrained())


def test_products_are_labelled_at_the_level(monkeypatch):
    monkeypatch.setattr(evaluating, "read_products", lambda shards, split, transform: [(shards, split, transform)])
    asked = evaluation()
    monkeypatch.setattr(CategoryLevel, "relabel", lambda self, product: (*product, self.level))
    assert list(asked.products("train", "t")) == [("shards", "train", "t", "leaf")]
    assert list(asked.products("train")) == [("shards", "train", None, "leaf")]


def test_a_result_says_what_was_measured():
    asked = evaluation(test_split="validation")
    found = asked.result("t", "stage", pretrained(), ["tables"], {"e": 1})
    assert (found.task, found.stage, found.source, found.fingerprint) == ("t", "stage", "s", "f")
    assert (found.shards, found.manifest_hash, found.split) == ("shards", "hash", "validation")
    assert (found.tables, found.extras, found.settings["name"]) == (["tables"], {"e": 1}, "n")


@pytest.fixture
def encoded(monkeypatch):
    """What is embedded: (split, options). The sets are numbered; nothing comes back where `rank` is set."""
    calls = SimpleNamespace(made=[], rank=0)

    def encode(model, data, requests):
        calls.made.append((data.split, [request.options for request in requests]))
        if calls.rank:
            return None
        return [embedding_set(np.eye(12)[:, :4] + n, modalities=r.options.modalities) for n, r in enumerate(requests)]

    monkeypatch.setattr(jobs, "encode_split", encode)
    return calls


def asked_of(monkeypatch, name):
    seen = []
    monkeypatch.setattr(jobs.tasks, name, lambda *given: seen.append(given) or (["table"], {"extra": 1}))
    return seen


def test_queries_and_gallery_of_one_split_are_embedded_together(encoded, monkeypatch):
    seen = asked_of(monkeypatch, "coarse_retrieval")
    config = RetrievalConfig(query_modalities=["text"], operation="sum", normalized=False)
    asked = evaluation(coarse_retrieval=config)
    result = jobs.evaluate_task("coarse_retrieval", asked, pretrained(), "stage")
    assert (result.task, result.stage, result.tables, result.extras) == (
        "coarse_retrieval", "stage", ["table"], {"extra": 1}
    )  # fmt: skip
    ((split, options),) = encoded.made
    assert split == "test" and [one.modalities for one in options] == [("text",), NAMES]
    assert {(one.states, one.operation, one.normalized) for one in options} == {("fused", "sum", False)}
    ((queries, gallery, *rest),) = seen
    assert (queries.info.modalities, gallery.info.modalities) == (("text",), NAMES)
    assert rest[0] is config and rest[1] is asked.uncertainty and rest[2].tolist() == asked.all_labels().tolist()
    encoded.made.clear()
    jobs.evaluate_task("coarse_retrieval", evaluation(), pretrained(), "stage")
    assert [len(options) for _, options in encoded.made] == [1] and seen[1][0] is seen[1][1]
    encoded.rank = 1
    assert jobs.evaluate_task("coarse_retrieval", asked, pretrained(), "stage") is None


def test_another_gallery_split_is_embedded_on_its_own(encoded, monkeypatch):
    seen = asked_of(monkeypatch, "coarse_retrieval")
    config = RetrievalConfig(gallery_split="train", gallery_modalities=["image"], states="dense")
    asked = evaluation(coarse_retrieval=config)
    jobs.evaluate_task("coarse_retrieval", asked, pretrained(), "stage")
    assert [(split, [o.modalities for o in options]) for split, options in encoded.made] == [
        ("test", [NAMES]),
        ("train", [("image",)]),
    ]
    assert encoded.made[0][1][0].operation == "concat"
    assert (seen[0][0].info.modalities, seen[0][1].info.modalities) == (NAMES, ("image",))
    encoded.rank = 1
    assert jobs.evaluate_task("coarse_retrieval", asked, pretrained(), "stage") is None
    same = RetrievalConfig(gallery_split="test")
    encoded.made.clear()
    jobs.evaluate_task("coarse_retrieval", evaluation(coarse_retrieval=same), pretrained(), "stage")
    assert len(encoded.made) == 1


def test_instances_by_file_are_two_views_of_the_split(encoded, opened, monkeypatch):
    seen = asked_of(monkeypatch, "instance_retrieval")
    monkeypatch.setattr(jobs, "use_file", lambda number: f"file {number}")
    config = RetrievalConfig(instance="file", query_file=3, query_modalities=["image"])
    asked = evaluation(instance_retrieval=config)
    jobs.evaluate_task("instance_retrieval", asked, pretrained(), "stage")
    assert [options["transform"] for *_, options in opened] == ["file 3", "file 0"]
    assert (seen[0][0].info.modalities, seen[0][1].info.modalities) == (("image",), NAMES)
    assert seen[0][2] is config and seen[0][3] is asked.uncertainty
    encoded.rank = 1
    assert jobs.evaluate_task("instance_retrieval", asked, pretrained(), "stage") is None
    with pytest.raises(ValueError, match="^instance_retrieval on test of shards: query_modalities: modality 'x'"):
        bad = RetrievalConfig(query_modalities=["x"])
        jobs.evaluate_task("instance_retrieval", evaluation(instance_retrieval=bad), pretrained(), "stage")


def test_clustering_embeds_its_modalities_and_is_drawn(encoded, monkeypatch):
    seen = asked_of(monkeypatch, "clustering")
    monkeypatch.setattr(jobs, "projection", lambda products, method: method)
    monkeypatch.setattr(jobs, "check_projection", lambda method: None)
    config = ClusteringConfig(modalities=["text"], operation="sum", projection="umap")
    asked = evaluation(clustering=config)
    result = jobs.evaluate_task("clustering", asked, pretrained(), "stage")
    ((_, (option,)),) = encoded.made
    assert (option.modalities, option.states, option.operation, option.normalized) == (("text",), "fused", "sum", True)
    assert seen[0][1] is config and seen[0][2] is asked.uncertainty and result.extras == {"projection": "umap"}
    dense = ClusteringConfig(states="dense")
    jobs.evaluate_task("clustering", evaluation(clustering=dense), pretrained(), "stage")
    assert encoded.made[-1][1][0].operation == "concat"
    encoded.rank = 1
    assert jobs.evaluate_task("clustering", asked, pretrained(), "stage") is None


def test_a_classifier_is_tested_on_its_dense_layer(encoded, monkeypatch):
    seen = asked_of(monkeypatch, "classification")
    model = pretrained(SimpleNamespace(logits=lambda vectors: vectors[:, :3]))
    config = ClassificationConfig(modalities=["image"], min_class_products=1)
    asked = evaluation(classification=config)
    jobs.classification_table(asked, model, "named")
    jobs.classification_table(asked, model)
    ((_, (option,)), _) = encoded.made
    assert (option.modalities, option.states, option.operation, option.normalized) == (
        ("image",), "dense", "concat", False
    )  # fmt: skip
    ids, label_N, logits_DNC, classes, uncertainty, name = seen[0]
    assert (len(ids), len(label_N), logits_DNC.shape, name) == (12, 12, (1, 12, 3), "named")
    assert classes is asked.classes and uncertainty is asked.uncertainty and seen[1][5] == "test"
    encoded.rank = 1
    assert jobs.classification_table(asked, model) is None


def test_the_plane_shows_labelled_products_that_are_not_empty(monkeypatch):
    import sklearn.manifold

    seen = []

    class Tsne:
        def __init__(self, dimensions, perplexity, init, random_state):
            seen.append((dimensions, perplexity, init, random_state))

        def fit_transform(self, vector_ND):
            return vector_ND[:, :2] + 0.123456

    monkeypatch.setattr(sklearn.manifold, "TSNE", Tsne)
    present = np.ones((13, 3), bool)
    present[12] = False
    vectors = np.arange(26.0).reshape(13, 2)
    products = embedding_set(vectors, [-1, *range(12)], present_NM=present, ids=[f"p{i:02}" for i in range(13)])
    drawn = jobs.projection(products.take(np.arange(13)[::-1]))
    assert drawn["label"] == list(range(11)) and drawn["xy"][0] == [2.12, 3.12]
    assert jobs.projection(products, limit=10)["label"] == list(range(10))
    assert jobs.projection(products, limit=9) == {}
    many = embedding_set(np.zeros((120, 2)), ids=[f"p{i:03}" for i in range(120)])
    jobs.projection(many)
    assert seen == [(2, 3, "pca", 0), (2, 3, "pca", 0), (2, 30, "pca", 0)]


def test_results_go_to_the_folder_of_the_configuration():
    assert str(jobs.folder_of(DownstreamConfig(name="n", output_dir="o"))) == "o/n"
    fields = {field.name: field.default_factory for field in dataclasses.fields(Evaluation)}
    assert fields["opened"]() == {}
