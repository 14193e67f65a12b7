"""The classifier's parts: its start, its dropout, its loss, and what is trained."""

import numpy as np
import pytest
import torch
from downstream_examples import tiny_batch, tiny_model

from m5ds.downstream.settings import ClassificationConfig
from m5ds.downstream.tasks import classifier, lora
from m5ds.downstream.tasks.classifier import TASK, ClassifierHead, ProductClassifier, class_terms
from m5ds.kernels.common import philox
from m5ds.model import initialization

LABELS = [0, 1, 2, 0, -1, 1, 2, 2]


def made(tmp_path, seed=3, **options):
    config = ClassificationConfig(**({"dense_size": 6, "dropout": 0.25} | options))
    return ProductClassifier(tiny_model(tmp_path), config, num_classes=4, seed=seed)


def test_a_head_starts_normal_with_the_deviation_of_its_width_and_zero_biases(tmp_path):
    head = made(tmp_path).head
    for name, weight in (("dense.weight", head.dense.weight), ("output.weight", head.output.weight)):
        expected = initialization.normal(weight.shape, 3, f"head.{name}", weight.shape[1] ** -0.5)
        assert torch.equal(weight, expected)
    assert head.dense.weight.shape == (6, 5 * 16) and head.output.weight.shape == (4, 6)
    assert not head.dense.bias.any() and not head.output.bias.any() and head.dropout == 0.25


def test_dropout_drops_by_the_products_words_and_scales_the_rest(tmp_path):
    batch = tiny_batch(tiny_model(tmp_path), 8, draw=2)
    head = ClassifierHead(5, 40, 3, 0.25).train()
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    dense_BH, logits_BC = head(features, batch, seed=9)
    assert torch.equal(dense_BH, head.dense(features))
    words = philox.random_words(
        seed=9,
        draw=torch.full((8, 1), 2),
        product=batch.product_B[:, None],
        stream=philox.Stream.HIDDEN_DROPOUT,
        element=torch.arange(40),
        index=65535,
    )[0]
    kept_BH = words >= 2**32 // 4
    assert 0.65 < kept_BH.float().mean() < 0.85
    torch.testing.assert_close(logits_BC, head.output(dense_BH * kept_BH / 0.75))
    assert torch.equal(head.eval()(features, batch, seed=9)[1], head.output(dense_BH))
    head.train().dropout = 0.0
    assert torch.equal(head(features, batch, seed=9)[1], head.output(dense_BH))


def test_logits_of_many_products_have_no_dropout():
    head = ClassifierHead(5, 4, 3, 0.9).train()
    dense_NH = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    found = head.logits(dense_NH)
    assert found.dtype == np.float32 and not isinstance(found, torch.Tensor)
    expected = dense_NH @ head.output.weight.detach().numpy().T + head.output.bias.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_is_weighed_shifted_summed_and_divided_by_the_steps_labels(tmp_path):
    model = made(tmp_path, dropout=0.0).eval()
    batch = tiny_batch(model.encoder, labels=LABELS)
    assert model(batch).loss is None and model(batch).losses == {}
    weight_C, shift_C = torch.tensor([0.5, 2.0, 1.0, 0.0]), torch.tensor([0.3, -0.2, 0.1, 0.0])
    model.weight_C, model.shift_C = weight_C, shift_C
    output = model(batch, counts={TASK: 20})
    log_BC = (output.logits_BC + shift_C).log_softmax(1)
    expected = -sum(weight_C[label] * log_BC[row, label] for row, label in enumerate(LABELS) if label >= 0) / 20
    torch.testing.assert_close(output.loss, expected)
    assert output.losses[TASK] is output.loss
    none = tiny_batch(model.encoder, labels=[-1] * 8)
    assert model(none, counts={TASK: 0}).loss.item() == 0.0


def test_terms_of_the_losses_follow_their_papers():
    count_C = np.array([8, 2, 0])
    plain = class_terms(ClassificationConfig(), count_C)
    assert plain[0].tolist() == [1, 1, 1] and plain[1].tolist() == [0, 0, 0]
    weight_C, shift_C = class_terms(ClassificationConfig(loss="class_balanced", beta=0.5), count_C)
    raw = np.array([0.5 / (1 - 0.5**8), 0.5 / (1 - 0.5**2), 0])
    np.testing.assert_allclose(weight_C, raw * 10 / (raw * count_C).sum(), rtol=1e-6)
    assert not shift_C.any()
    weight_C, shift_C = class_terms(ClassificationConfig(loss="logit_adjusted", tau=0.5), count_C)
    np.testing.assert_allclose(shift_C, 0.5 * np.log([0.8, 0.2, 0.1]), rtol=1e-6)
    assert weight_C.tolist() == [1, 1, 1]
    assert {one.dtype for one in (*plain, weight_C, shift_C)} == {np.dtype(np.float32)}


def test_a_frozen_encoder_stays_in_evaluation_mode(tmp_path):
    frozen, whole = made(tmp_path, tuning="frozen"), made(tmp_path)
    assert not frozen.train().encoder.training and frozen.head.training and frozen.training
    assert whole.train().encoder.training
    assert not whole.train(False).encoder.training and not whole.head.training
    assert frozen.train() is frozen


def test_what_the_training_step_asks_is_there(tmp_path):
    model = made(tmp_path, modalities=["text", "image"])
    assert model.tasks == {"label": "classification"} and model.pair_names == ()
    assert (model.config, model.names) == (model.encoder.config, model.encoder.names)
    assert model.modalities == ("image", "text") and model.tuning == "full"
    assert model.weight_C.tolist() == [1] * 4 and model.shift_C.tolist() == [0] * 4
    model.set_loss(ClassificationConfig(loss="class_balanced"), np.array([1, 1, 2, 0]))
    assert model.weight_C[3] == 0 and model.weight_C.dtype == torch.float32
    without = model.no_weight_decay_names()
    assert {"head.dense.bias", "head.output.bias"} <= without and "head.dense.weight" not in without
    assert {f"encoder.{name}" for name in model.encoder.no_weight_decay_names()} <= without
    assert all(name in without for name, parameter in model.named_parameters() if parameter.dim() == 1)


def test_only_pretrainings_own_parts_are_frozen_under_full_finetuning(tmp_path):
    frozen = {n.partition(".")[0] for n, p in made(tmp_path).encoder.named_parameters() if not p.requires_grad}
    trained = {n.partition(".")[0] for n, p in made(tmp_path).encoder.named_parameters() if p.requires_grad}
    assert frozen <= {"heads", "projections", "contrastive", "harmony"} and not frozen & trained
    assert "blocks" in trained and {"heads", "projections"} <= frozen
    assert classifier._DROPOUT_INDEX == 0xFFFF


def test_adapters_are_low_rank_start_from_their_names_and_are_all_that_is_trained(tmp_path):
    model = made(tmp_path, tuning="lora", lora_rank=3, lora_alpha=6.0)
    adapters = {n: p for n, p in model.encoder.named_parameters() if "lora_" in n}
    assert {n for n, p in model.encoder.named_parameters() if p.requires_grad} == set(adapters)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in adapters}
    assert layers == {"qkv", "out", "fc1", "fc2"} == set(lora.TARGETS)
    for name, parameter in adapters.items():
        if "lora_A" in name:
            assert parameter.shape[0] == 3
            assert torch.equal(parameter, initialization.normal(parameter.shape, 3, name, parameter.shape[1] ** -0.5))
        else:
            assert parameter.shape[1] == 3 and not parameter.any()


def test_weights_without_adapters_pass_unchanged_and_those_with_fold_by_their_scale():
    plain = {"a.weight": torch.ones(2, 2)}
    assert lora.merged(plain, {}) is plain
    weights = {
        "b.qkv.base_layer.weight": torch.ones(2, 2),
        "b.qkv.base_layer.bias": torch.tensor([5.0, 6.0]),
        "b.qkv.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "b.qkv.lora_B.default.weight": torch.tensor([[1.0], [0.5]]),
        "c.weight": torch.tensor([7.0]),
    }
    found = lora.merged(weights, {"lora_rank": 4, "lora_alpha": 8.0})
    assert {name: value.tolist() for name, value in found.items()} == {
        "b.qkv.weight": [[3.0, 5.0], [2.0, 3.0]],
        "b.qkv.bias": [5.0, 6.0],
        "c.weight": [7.0],
    }
    with pytest.raises(KeyError):
        lora.merged(weights, {})
