"""The linear probe's job: what is embedded, drawn, chosen and left out."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import NAMES, embedding_set

from m5ds.downstream.settings import DownstreamConfig, LinearProbeConfig
from m5ds.downstream.tasks import linear_probe, probe_job
from m5ds.downstream.tasks.labels import ClassChoice
from m5ds.downstream.tasks.linear_probe import ProbeData, probe

KEPT = ClassChoice(count_C=np.array([2, 2, 0]), kept_C=np.ones(3, bool), dropped=())


def evaluation(splits=("train", "validation", "test"), test_split="test", **options):
    config = LinearProbeConfig(**options)
    return SimpleNamespace(
        settings=DownstreamConfig(name="n", test_split=test_split, seed=10, linear_probe=config),
        manifest=SimpleNamespace(splits=dict.fromkeys(splits)),
        all_classes=KEPT,
        train_reader="reader",
        uncertainty="uncertainty",
        split=lambda pretrained, split: split,
    )


def test_validation_is_needed_only_to_choose_among_strengths():
    assert probe_job.needed_splits(evaluation()) == ["train", "validation", "test"]
    one = {"inverse_regularization": [1.0]}
    assert probe_job.needed_splits(evaluation(**one)) == ["train", "test"]
    assert probe_job.needed_splits(evaluation(("train", "test"), **one)) == ["train", "test"]
    assert probe_job.needed_splits(evaluation(test_split="validation", **one)) == ["train", "validation"]
    for given, message in (
        (evaluation(test_split="train", **one), "learns from `train`"),
        (evaluation(test_split="validation"), "chosen on the split that is tested"),
        (evaluation(("train", "test")), "there is no split validation"),
        (evaluation(("validation", "test")), "no split 'train'"),
        (evaluation(("train", "validation")), "no split 'test'.*set test_split"),
    ):
        with pytest.raises(ValueError, match=message):
            probe_job.needed_splits(given)


@pytest.fixture
def job(monkeypatch):
    """Runs the job over sets that are named by split and modalities."""
    calls = SimpleNamespace(encoded=[], tables=[], rank=0)

    def encode(pretrained, data, requests, *, progress):
        assert progress == f"embed {data}"
        calls.encoded.append((data, [request.options for request in requests]))
        return None if calls.rank else [(data, request.options.modalities) for request in requests]

    def tables(evaluation, sets, fractions, *, name=None, shown_only=False):
        calls.tables.append((sets, fractions, name, shown_only))
        return ([] if name == "text only" else [name]), ({name: "why"} if name == "text only" else {})

    monkeypatch.setattr(probe_job, "encode_split", encode)
    monkeypatch.setattr(probe_job, "label_tables", tables)

    def run(head=None, **options):
        pretrained = SimpleNamespace(model=SimpleNamespace(names=NAMES), head=head, source="s")
        return probe_job.run(evaluation(**options), pretrained)

    run.calls = calls
    return run


def test_all_modalities_are_probed_together_then_each_alone(job):
    found = job(label_fractions=[0.5, 1.0], operation="sum", states="contrastive")
    calls = job.calls
    assert [split for split, _ in calls.encoded] == ["train", "validation", "test"]
    options = calls.encoded[0][1]
    assert [one.modalities for one in options] == [NAMES, ("image",), ("text",), ("table",)]
    assert {(one.states, one.operation, one.normalized) for one in options} == {("contrastive", "sum", True)}
    whole, *alone = calls.tables
    splits = ("train", "validation", "test")
    assert whole == ({split: (split, NAMES) for split in splits}, [0.5, 1.0], None, False)
    assert [call[1:] for call in alone] == [([1.0], f"{name} only", True) for name in NAMES]
    assert alone[1][0] == {split: (split, ("text",)) for split in splits}
    assert found == ([None, "image only", "table only"], {"not_scored": {"text only": "why"}})


def test_named_modalities_are_probed_once(job):
    job(modalities=["text"], alone=["text", "table"])
    assert [one.modalities for one in job.calls.encoded[0][1]] == [("text",), ("table",)]
    job.calls.encoded.clear()
    job(alone=[])
    assert [one.modalities for one in job.calls.encoded[0][1]] == [NAMES]
    for key in ("modalities", "alone"):
        with pytest.raises(ValueError, match=f"linear_probe.{key}: modality 'smell'"):
            job(**{key: ["smell"]})
    with pytest.raises(ValueError, match="s was finetuned on the training labels"):
        job(head=1)


def test_without_any_table_the_reasons_are_the_error_and_other_ranks_have_no_result(job, monkeypatch):
    monkeypatch.setattr(probe_job, "label_tables", lambda *_, name=None, **__: ([], {f"{name}": "same"}))
    with pytest.raises(ValueError, match="^same$"):
        job()
    job.calls.rank = 1
    monkeypatch.setattr(probe_job.distributed, "rank", lambda: 1)
    assert job() is None


@pytest.fixture
def tabled(monkeypatch):
    """label_tables over recorders of the draws and of the tables."""
    calls = SimpleNamespace(drawn=[], tables=[])

    def drawn(reader, fraction, seed):
        calls.drawn.append((reader, fraction, seed))
        return [np.array([True, False]), np.array([False, True])]

    def table(title, data, draws, test, config, classes, uncertainty, **facts):
        if title == "10 % of the labels":
            raise ValueError("too few")
        calls.tables.append((title, data, [one.tolist() for one in draws], test, config, classes, uncertainty, facts))
        return title

    monkeypatch.setattr(probe_job, "drawn_labels", drawn)
    monkeypatch.setattr(probe_job, "probe_table", table)
    return calls


def sets(present=None, ids=("d", "b", "a", "c")):
    train = embedding_set(
        np.arange(8.0).reshape(4, 2), [0, 1, 1, 0], ids=ids, present_NM=present, modalities=("image",)
    )
    tested = None if present is None else present[:2]
    test = embedding_set(np.eye(2), [0, 1], ids=("z", "y"), present_NM=tested, modalities=("image",))
    return {"train": train, "test": test}


def test_each_share_is_a_table_of_its_draws_in_the_order_of_the_ids(tabled):
    given = evaluation(draws=2)
    found = probe_job.label_tables(given, sets(), [0.1, 0.5, 1.0])
    assert found == (["50 % of the labels", "all labels"], {"10 % of the labels": "too few"})
    assert tabled.drawn == [
        ("reader", fraction, seed)
        for fraction, seeds in ((0.1, 2), (0.5, 2), (1.0, 1))
        for seed in range(10, 10 + seeds)
    ]
    title, data, draws, test, config, classes, uncertainty, facts = tabled.tables[0]
    assert title == "50 % of the labels" and draws == [[False, False, True, True]] * 2
    assert data.train_label_N.tolist() == [1, 1, 0, 0] and data.validation_NW is None
    np.testing.assert_allclose(data.train_NW.std(0), 1)
    assert test.ids == ("y", "z") and (config, classes) == (given.settings.linear_probe, KEPT)
    assert uncertainty == "uncertainty"
    assert facts == {"label_fraction": 0.5, "modalities": "image", "products_without_these": 0}
    more = sets() | {"validation": sets()["test"]}
    probe_job.label_tables(given, more, [1.0], name="n", standardized=False)
    assert tabled.tables[-1][0] == "n" and tabled.tables[-1][1].validation_label_N.tolist() == [1, 0]
    assert not isinstance(tabled.tables[-1][1].train_NW, np.ndarray)


def test_products_without_the_modality_leave_every_split(tabled):
    present = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    probe_job.label_tables(evaluation(draws=1), sets(present), [0.5], shown_only=True)
    _, data, draws, test, *_, facts = tabled.tables[0]
    assert data.train_label_N.tolist() == [1, 0, 0] and test.ids == ("z",)
    assert draws == [[False, True, True]] and facts["products_without_these"] == 1
    probe_job.label_tables(evaluation(draws=1), sets(present), [0.5])
    assert len(tabled.tables[1][3]) == 2 and tabled.tables[1][-1]["products_without_these"] == 1
    nobody = np.array([[0, 1, 0]] * 4, bool)
    found = probe_job.label_tables(evaluation(), sets(nobody), [0.5, 1.0], shown_only=True)
    assert found == ([], dict.fromkeys(("50 % of the labels", "all labels"), "a split has no product with it"))


def data(validation=True, **changes):
    vectors = np.array([[0.0], [0.2], [1.0], [1.2]], np.float32)
    label_N = np.array([0, 0, 1, 1])
    given = {
        "train_NW": vectors,
        "train_label_N": label_N,
        "validation_NW": vectors if validation else None,
        "validation_label_N": label_N if validation else None,
        "test_NW": vectors,
        "num_categories": 3,
    }
    return ProbeData(**(given | changes))


class Model:
    """A classifier whose accuracy depends on the strength it was fitted with."""

    right = {0.1: 2, 1.0: 4, 10.0: 4, 100.0: 1}  # noqa: RUF012
    fitted = []  # noqa: RUF012

    def __init__(self, C, max_iter):
        self.C, self.max_iter, self.classes_ = C, max_iter, np.array([0, 1])

    def fit(self, train, label_N):
        self.fitted.append((self.C, self.max_iter, label_N.tolist()))
        return self

    def predict(self, vectors):
        return np.where(np.arange(4) < self.right[self.C], [0, 0, 1, 1], -5)

    def decision_function(self, vectors):
        return np.full(len(vectors), self.C)


def test_the_strength_of_the_best_validation_accuracy_wins_and_of_equals_the_stronger(monkeypatch):
    monkeypatch.setattr(linear_probe, "LogisticRegression", Model)
    Model.fitted.clear()
    config = LinearProbeConfig(inverse_regularization=[100.0, 10.0, 1.0, 0.1], max_iterations=7)
    draws = [np.ones(4, bool), np.array([True, False, True, False])]
    scores_DNC, strength = probe(data(), draws, config)
    assert strength == 1.0 and scores_DNC.shape == (2, 4, 3) and scores_DNC.dtype == np.float32
    assert scores_DNC[1, 0].tolist() == [-1.0, 1.0, -np.inf]
    assert Model.fitted[:2] == [(0.1, 7, [0, 0, 1, 1]), (0.1, 7, [0, 1])]
    unknown = data(validation_label_N=np.array([0, 0, -1, -1]))
    assert probe(unknown, draws, config)[1] == 0.1  # two right of two known


def test_one_strength_needs_no_validation_and_several_do():
    alone = LinearProbeConfig(inverse_regularization=[2.0])
    draws = [np.ones(4, bool)]
    assert probe(data(validation=False), draws, alone)[1] == 2.0
    several = LinearProbeConfig(inverse_regularization=[2.0, 3.0])
    for given in (data(validation=False), data(validation_label_N=np.full(4, -1))):
        with pytest.raises(ValueError, match="no validation product has a label"):
            probe(given, draws, several)
    probe(data(validation_label_N=np.array([0, -1, -1, -1])), draws, several)
    with pytest.raises(ValueError, match="a draw of 1 labels holds 1 categories"):
        probe(data(), [*draws, np.array([True, False, False, False])], alone)
    with pytest.raises(ValueError, match="a draw of 2 labels holds 1 categories"):
        probe(data(), [np.array([True, True, False, False])], alone)


def test_fits_that_stop_early_or_of_many_categories_do_not_warn():
    random = np.random.default_rng(0)
    many = data(train_NW=random.normal(size=(4, 3)).astype(np.float32), train_label_N=np.array([0, 1, 2, 0]),
                test_NW=np.zeros((4, 3), np.float32))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(many, [np.ones(4, bool)], LinearProbeConfig(inverse_regularization=[1e6], max_iterations=1))
