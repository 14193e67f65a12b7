"""The linear probe: what it learns from which labels, how its strength is chosen, and what it refuses."""

import dataclasses

import numpy as np
import pytest
from downstream_examples import embedding_set
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from m5ds.downstream import settings as downstream_settings
from m5ds.downstream import tasks
from m5ds.downstream.jobs import Evaluation, evaluate_task
from m5ds.downstream.labels import ClassChoice, drawn_labels
from m5ds.downstream.linear_probe import ProbeData, label_name, probe, probe_table
from m5ds.downstream.pretrained import load_pretrained
from m5ds.downstream.settings import ClassificationConfig, DownstreamConfig, LinearProbeConfig

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


def test_sparse_features_stay_as_they_are():
    train = labelled(80, 0)
    found = ProbeData.of(train, None, train, CLASSES, standardized=False)
    assert sparse.issparse(found.train_NW)
    np.testing.assert_array_equal(found.train_NW.toarray(), train.vector_ND)


def test_left_out_categories_neither_teach_nor_are_guessed(data):
    logits_DNC, _ = probe(data, [all_of(data)], LinearProbeConfig())
    assert logits_DNC.shape == (1, 40, NUM_CATEGORIES)
    assert np.isneginf(logits_DNC[..., 3]).all() and np.isfinite(logits_DNC[..., :3]).all()


def test_one_strength_is_scikit_learns_logistic_regression(data):
    config = LinearProbeConfig(inverse_regularization=[0.5])
    logits_DNC, strength = probe(data, [all_of(data)], config)
    known_N = data.train_label_N >= 0
    model = LogisticRegression(C=0.5, max_iter=200).fit(data.train_NW[known_N], data.train_label_N[known_N])
    np.testing.assert_allclose(logits_DNC[0, :, :3], model.predict_log_proba(data.test_NW), rtol=1e-5, atol=1e-5)
    assert strength == 0.5


def test_the_strength_is_chosen_on_validation_and_never_on_test(data):
    config = LinearProbeConfig(inverse_regularization=[1e-6, 1.0, 1e3])
    known_N = data.validation_label_N >= 0

    def accuracy(strength):
        rows = data.train_label_N >= 0
        model = LogisticRegression(C=strength, max_iter=200).fit(data.train_NW[rows], data.train_label_N[rows])
        return (model.predict(data.validation_NW) == data.validation_label_N)[known_N].mean()

    scores = [accuracy(strength) for strength in config.inverse_regularization]
    _, chosen = probe(data, [all_of(data)], config)
    assert chosen == config.inverse_regularization[int(np.argmax(scores))]
    emptied = dataclasses.replace(data, test_NW=np.zeros_like(data.test_NW))
    assert probe(emptied, [all_of(data)], config)[1] == chosen
    # Labels turned round: what was best is worst now, so the choice follows the validation labels.
    turned = np.where(known_N, (data.validation_label_N + 1) % 3, -1)
    assert probe(dataclasses.replace(data, validation_label_N=turned), [all_of(data)], config)[1] != chosen or (
        scores[0] == max(scores)
    )


def test_a_probe_learns_from_the_drawn_labels_only(data):
    few = np.zeros(len(data.train_label_N), dtype=bool)
    few[[0, 1]] = True
    logits_DNC, _ = probe(data, [few], LinearProbeConfig(inverse_regularization=[1.0]))
    assert np.isneginf(logits_DNC[..., 2]).all(), "the draw holds the categories 0 and 1"


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


def test_a_grid_needs_a_validation_split_that_is_not_tested(tmp_path):
    path = tmp_path / "probe.yaml"
    path.write_text("name: probe\ntest_split: validation\ntrain: {epochs: 1}\nclassification: {patience: 0}\n")
    with pytest.raises(ValueError, match="linear_probe.inverse_regularization would be chosen on the split"):
        downstream_settings.load(path)
    loaded = downstream_settings.load(path, ["linear_probe.inverse_regularization=[1.0]"])
    assert loaded.linear_probe.inverse_regularization == [1.0]
