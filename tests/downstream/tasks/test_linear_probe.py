"""The linear probe: what it learns from which labels, how its strength is chosen, and what it refuses."""

import dataclasses

import numpy as np
import pytest
from downstream_examples import embedding_set
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from m5ds.downstream.embed.encoding import Request, encode_split
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.pretrained import load_pretrained
from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig, LinearProbeConfig
from m5ds.downstream.tasks import probe_job, tasks
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.jobs import evaluate_task
from m5ds.downstream.tasks.labels import ClassChoice, drawn_labels, read_labels
from m5ds.downstream.tasks.linear_probe import ProbeData, label_name, probe, probe_table
from m5ds.model.objectives.classification import ClassifierHead

NUM_CATEGORIES = 4
CLASSES = ClassChoice(count_C=np.array([20, 20, 20, 0]), kept_C=np.array([True, True, True, False]), dropped=("rare",))


def labelled(count, seed, spread=0.3):
    """Three clouds in three dimensions of very different scales, and a fourth category that is left out."""
    generator = np.random.default_rng(seed)
    label_N = np.arange(count) % NUM_CATEGORIES
    vector_ND = np.eye(4)[label_N][:, :3] + spread * generator.standard_normal((count, 3))
    return embedding_set(vector_ND * [1.0, 100.0, 1e-3], label_N)


@pytest.fixture
def data():
    return ProbeData.of(labelled(80, 0), labelled(40, 1), labelled(40, 2), CLASSES)


def all_of(data):
    return np.ones(len(data.train_label_N), dtype=bool)


def test_features_are_standardised_by_the_training_split_alone(data):
    np.testing.assert_allclose(data.train_NW.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train_NW.std(0), 1, atol=1e-5)
    assert np.abs(data.test_NW.mean(0)).max() > 1e-3


def test_sparse_features_stay_sparse_at_the_scale_of_standardised_ones():
    train = labelled(80, 0)
    found = ProbeData.of(train, None, train, CLASSES, standardized=False)
    assert sparse.issparse(found.train_NW)
    rows = found.train_NW.toarray()
    assert np.square(rows).mean() == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_allclose(rows / rows[0, 1], train.vector_ND / train.vector_ND[0, 1], rtol=1e-4)


def test_left_out_categories_neither_teach_nor_are_guessed(data):
    logits_DNC, _ = probe(data, [all_of(data)], LinearProbeConfig())
    assert logits_DNC.shape == (1, 40, NUM_CATEGORIES)
    assert np.isneginf(logits_DNC[..., 3]).all() and np.isfinite(logits_DNC[..., :3]).all()


def test_one_strength_is_scikit_learns_logistic_regression(data):
    config = LinearProbeConfig(inverse_regularization=[0.5])
    logits_DNC, strength = probe(data, [all_of(data)], config)
    known_N = data.train_label_N >= 0
    model = LogisticRegression(C=0.5, max_iter=200).fit(data.train_NW[known_N], data.train_label_N[known_N])
    np.testing.assert_allclose(logits_DNC[0, :, :3], model.decision_function(data.test_NW), rtol=1e-5, atol=1e-5)
    assert strength == 0.5


def test_the_strength_is_chosen_on_validation_and_never_on_test():
    """Clouds that overlap. The true validation labels want much regularisation; all 0, they want little."""
    noisy = ProbeData.of(labelled(16, 2, 0.8), labelled(400, 11, 0.8), labelled(400, 12, 0.8), CLASSES)
    config = LinearProbeConfig(inverse_regularization=[1e-6, 0.05, 1e4])
    known_N = noisy.validation_label_N >= 0

    def accuracy(strength, label_N):
        rows = noisy.train_label_N >= 0
        model = LogisticRegression(C=strength, max_iter=200).fit(noisy.train_NW[rows], noisy.train_label_N[rows])
        return (model.predict(noisy.validation_NW) == label_N)[known_N].mean()

    def chosen(**changed):
        return probe(dataclasses.replace(noisy, **changed), [all_of(noisy)], config)[1]

    for label_N, best in ((noisy.validation_label_N, 1e-6), (np.where(known_N, 0, -1), 1e4)):
        scores = [accuracy(strength, label_N) for strength in config.inverse_regularization]
        assert config.inverse_regularization[int(np.argmax(scores))] == best, scores
        assert chosen(validation_label_N=label_N) == best
        assert chosen(validation_label_N=label_N, test_NW=np.zeros_like(noisy.test_NW)) == best


def test_validation_labels_are_needed_to_choose_and_only_then(data):
    unlabelled = dataclasses.replace(data, validation_label_N=np.full_like(data.validation_label_N, -1))
    with pytest.raises(ValueError, match="no validation product has a label .*; give linear_probe.inverse_reg"):
        probe(unlabelled, [all_of(data)], LinearProbeConfig())
    assert probe(unlabelled, [all_of(data)], LinearProbeConfig(inverse_regularization=[2.0]))[1] == 2.0


def test_a_category_that_was_not_learned_is_in_no_top_five(data):
    test = labelled(40, 2)
    few = np.isin(data.train_label_N, [1, 2])
    config = LinearProbeConfig(inverse_regularization=[1.0])
    table = probe_table("few", data, [few], test, config, CLASSES, tasks.Uncertainty(num_replicates=20))
    of_first = table.values["label"] == 0
    assert of_first.any() and not table.values["top5_accuracy"][of_first].any()
    assert table.values["top5_accuracy"][~of_first].all()


def test_a_probe_learns_from_the_drawn_labels_only(data):
    few = np.zeros(len(data.train_label_N), dtype=bool)
    few[[0, 1]] = True
    logits_DNC, _ = probe(data, [few], LinearProbeConfig(inverse_regularization=[1.0]))
    assert np.isneginf(logits_DNC[..., 2]).all() and np.isfinite(logits_DNC[..., :2]).all(), (
        "the draw holds the categories 0 and 1"
    )


def test_a_draw_of_one_category_is_refused_by_name(data):
    one = np.zeros(len(data.train_label_N), dtype=bool)
    one[0] = True
    with pytest.raises(ValueError, match="linear_probe.label_fractions: a draw of 1 labels holds 1 categories"):
        probe(data, [one], LinearProbeConfig())


def test_a_table_is_the_mean_over_draws(data):
    test = labelled(40, 2)
    config = LinearProbeConfig(inverse_regularization=[1.0])
    generator = np.random.default_rng(5)
    draws = [generator.random(80) < 0.15 for _ in range(3)]
    uncertainty = tasks.Uncertainty(num_replicates=50)

    def table(chosen):
        return probe_table("few", data, chosen, test, config, CLASSES, uncertainty, label_fraction=0.15)

    together, alone = table(draws), [table([draw]) for draw in draws]
    for metric in ("accuracy", "macro_accuracy", "top5_accuracy"):
        mean = np.mean([one.metrics[metric].estimate for one in alone])
        assert together.metrics[metric].estimate == pytest.approx(mean, abs=1e-12)
    assert together.facts["draws"] == 3 and together.facts["products"] == 30 and together.facts["left_out"] == 10
    assert together.facts["labels"] == pytest.approx(np.mean([one.facts["labels"] for one in alone]), abs=0.06)


def test_tables_are_named_after_their_labels():
    assert [label_name(fraction) for fraction in (0.05, 0.125, 1.0)] == [
        "5 % of the labels",
        "12.5 % of the labels",
        "all labels",
    ]


@pytest.fixture
def evaluation(shards):
    settings = DownstreamConfig(
        name="probe",
        test_split="validation",
        num_replicates=20,
        classification=ClassificationConfig(rare_classes="keep"),
        linear_probe=LinearProbeConfig(
            inverse_regularization=[1.0], label_fractions=[0.5, 1.0], draws=2, alone=["text", "image"]
        ),
    )
    return Evaluation(settings, str(shards))


def test_the_task_probes_shares_of_the_labels_and_modalities_alone(evaluation, exported):
    result = evaluate_task("linear_probe", evaluation, load_pretrained(exported), "pretrain")
    assert [table.name for table in result.tables] == ["50 % of the labels", "all labels", "image only", "text only"]
    half, whole, image, text = result.tables
    assert (half.facts["draws"], whole.facts["draws"]) == (2, 1)
    shares = [np.concatenate(drawn_labels(evaluation.train_reader, 0.5, seed)).sum() for seed in (0, 1)]
    assert half.facts["labels"] == round(float(np.mean(shares)), 1)
    assert image.facts["modalities"] == "image" and text.facts["label_fraction"] == 1.0
    assert image.values["predicted/0"].tolist() != whole.values["predicted/0"].tolist()


def test_a_share_of_too_few_labels_is_left_out_and_named(evaluation, exported):
    config = dataclasses.replace(evaluation.settings.linear_probe, label_fractions=[1e-9, 1.0], alone=[])
    shared = Evaluation(dataclasses.replace(evaluation.settings, linear_probe=config), evaluation.shards)
    result = evaluate_task("linear_probe", shared, load_pretrained(exported), "pretrain")
    assert [table.name for table in result.tables] == ["all labels"]
    assert "holds 0 categories" in result.extras["not_scored"]["1e-07 % of the labels"]
    only = dataclasses.replace(config, label_fractions=[1e-9])
    nothing = Evaluation(dataclasses.replace(evaluation.settings, linear_probe=only), evaluation.shards)
    with pytest.raises(ValueError, match="ask for a larger fraction"):
        evaluate_task("linear_probe", nothing, load_pretrained(exported), "pretrain")


def test_an_unknown_modality_is_an_error_that_names_the_key(evaluation, exported):
    for key in ("modalities", "alone"):
        config = dataclasses.replace(evaluation.settings.linear_probe, **{key: ["smell"]})
        broken = Evaluation(dataclasses.replace(evaluation.settings, linear_probe=config), evaluation.shards)
        with pytest.raises(ValueError, match=rf"linear_probe\.{key}.*smell"):
            evaluate_task("linear_probe", broken, load_pretrained(exported), "pretrain")


def changed(evaluation, **sections):
    return Evaluation(dataclasses.replace(evaluation.settings, **sections), evaluation.shards)


@pytest.mark.parametrize(
    ("split", "grid", "message"),
    [
        ("train", [1.0], "learns from `train`; set test_split to another split"),
        ("validation", [0.1, 1.0], "inverse_regularization would be chosen on the split that is tested, validation"),
        ("tset", [1.0], "no split 'tset' in the shards, which have train, validation; set test_split"),
    ],
)
def test_splits_that_would_leak_or_are_not_there_are_refused_before_the_work(
    evaluation, exported, split, grid, message, monkeypatch
):
    monkeypatch.setattr(probe_job, "encode_split", None)
    config = dataclasses.replace(evaluation.settings.linear_probe, inverse_regularization=grid)
    broken = changed(evaluation, linear_probe=config, test_split=split)
    with pytest.raises(ValueError, match=message):
        evaluate_task("linear_probe", broken, load_pretrained(exported), "pretrain")


def test_a_finetuned_model_has_seen_the_labels(evaluation, exported):
    pretrained = load_pretrained(exported)
    head = ClassifierHead(80, 8, len(evaluation.manifest.categories), 0.0)
    with pytest.raises(ValueError, match="was finetuned on the training labels .*; pass its pretraining run"):
        evaluate_task("linear_probe", evaluation, dataclasses.replace(pretrained, head=head), "finetune")


def test_the_categories_are_those_of_all_labels_whatever_the_classifier_gets(evaluation, exported):
    few = dataclasses.replace(evaluation.settings.classification, label_fraction=0.2)
    first, second = (
        evaluate_task("linear_probe", one, load_pretrained(exported), "pretrain").table("all labels")
        for one in (evaluation, changed(evaluation, classification=few))
    )
    assert (changed(evaluation, classification=few).classes.count_C > 0).sum() < first.facts["categories"]
    assert second.facts == first.facts and second.metrics == first.metrics


def test_a_modality_alone_is_probed_on_the_products_that_have_it(evaluation, exported):
    config = dataclasses.replace(evaluation.settings.linear_probe, alone=["audio"], label_fractions=[1.0])
    result = evaluate_task("linear_probe", changed(evaluation, linear_probe=config), load_pretrained(exported), "x")
    whole, audio = result.tables
    pretrained = load_pretrained(exported)
    has_N, taught_N = (
        np.concatenate([item.batch.present_BM[:, pretrained.model.names.index("audio")] for item in data.batches()])
        for data in (evaluation.split(pretrained, split) for split in ("validation", "train"))
    )
    assert 0 < has_N.sum() < len(has_N)
    assert len(audio.ids) == audio.facts["products"] == has_N.sum()
    assert audio.facts["products_without_these"] == len(has_N) - has_N.sum()
    assert whole.facts["products"] == len(has_N)
    assert audio.facts["labels"] == (taught_N & (evaluation.train_label_N >= 0)).sum()


def lacking(products, split):
    """The sets with nobody of the split having a picture."""
    absent = dataclasses.replace(products[split], present_NM=np.zeros_like(products[split].present_NM))
    return products | {split: absent}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_modality_that_a_split_lacks_costs_its_own_table_alone(evaluation, split):
    settings = dataclasses.replace(evaluation.settings, test_split="test", linear_probe=LinearProbeConfig(draws=1))
    sets = {name: labelled(40, seed) for seed, name in enumerate(["train", "validation", "test"])}
    without = probe_job.label_tables(
        Evaluation(settings, evaluation.shards), lacking(sets, split), [1.0], name="image only", shown_only=True
    )
    assert without == ([], {"image only": "a split has no product with it"})


def test_a_modality_without_a_validation_label_is_named_and_stops_nothing(evaluation):
    settings = dataclasses.replace(evaluation.settings, test_split="test", linear_probe=LinearProbeConfig(draws=1))
    sets = {name: labelled(40, seed) for seed, name in enumerate(["train", "validation", "test"])}
    sets["validation"] = dataclasses.replace(sets["validation"], label_N=np.full(40, -1))
    shared = Evaluation(settings, evaluation.shards)
    tables, not_scored = probe_job.label_tables(shared, sets, [1.0], name="image only", shown_only=True)
    assert tables == [] and "no validation product has a label" in not_scored["image only"]


def test_draws_are_in_the_order_of_the_embeddings(evaluation, exported):
    pretrained = load_pretrained(exported)
    options = FeatureOptions(modalities=pretrained.model.names)
    (train,) = encode_split(pretrained, evaluation.split(pretrained, "train"), [Request(options=options)])
    assert train.label_N.tolist() == read_labels(evaluation.train_reader).tolist()
