"""The classifier's parts: its start, its dropout, its loss, and what is trained."""

import numpy as np
import pytest
import torch
from classifier_cases import classifier
from downstream_examples import tiny_batch, tiny_model

from m5ds.downstream.finetuning import lora
from m5ds.downstream.finetuning.classifier import class_terms
from m5ds.downstream.settings import ClassificationConfig
from m5ds.kernels.common import philox
from m5ds.model import initialization
from m5ds.model.objectives import classification
from m5ds.model.objectives.classification import TASK, ClassifierHead

LABELS = [0, 1, 2, 0, -1, 1, 2, 2]


def made(tmp_path, seed=3, **options):
    return classifier(tmp_path, seed=seed, **({"dense_size": 6, "dropout": 0.25} | options))


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
    batch = tiny_batch(model.model, labels=LABELS)
    weight_C, shift_C = torch.tensor([0.5, 2.0, 1.0, 0.0]), torch.tensor([0.3, -0.2, 0.1, 0.0])
    model.objective.set_classes(weight_C.numpy(), shift_C.numpy())
    output = model.forward(batch, **{TASK: 20})
    logits_BC = model.logits(batch)
    log_BC = (logits_BC + shift_C).log_softmax(1)
    expected = -sum(weight_C[label] * log_BC[row, label] for row, label in enumerate(LABELS) if label >= 0) / 20
    torch.testing.assert_close(output.loss, expected)
    assert set(output.losses) == {TASK} and output.losses[TASK] == output.loss
    right = sum(int(logits_BC[row].argmax()) == label for row, label in enumerate(LABELS) if label >= 0)
    assert int(output.measures[TASK]["accuracy"]) == right, "of the logits that are not shifted"
    none = tiny_batch(model.model, labels=[-1] * 8)
    assert model.loss(none, **{TASK: 0}).item() == 0.0


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
    assert frozen.model.train() is frozen.model and frozen.head.training
    assert not frozen.model.blocks.training and not frozen.model.training
    assert whole.model.train().blocks.training and whole.head.training
    assert not whole.model.train(False).blocks.training and not whole.head.training


def test_what_the_training_step_asks_is_there(tmp_path):
    model = made(tmp_path, modalities=["text", "image"], loss="class_balanced", count_C=(1, 1, 2, 0))
    assert model.objective.terms[0].name == TASK and model.objective.terms[0].modalities == ()
    assert model.shown == ("image", "text") and list(model.model.objectives) == ["masked", "contrastive", TASK]
    assert model.objective.weight_C[3] == 0 and model.objective.weight_C.dtype == torch.float32
    assert (
        made(tmp_path).objective.weight_C.tolist() == [1] * 4 and made(tmp_path).objective.shift_C.tolist() == [0] * 4
    )
    batch = tiny_batch(model.model, labels=LABELS)
    assert model.model.count_targets(batch, 0, (TASK,)) == {"products": 8, TASK: 7}
    without, own = model.model.no_weight_decay_names(), "objectives.classification.head."
    assert {f"{own}dense.bias", f"{own}output.bias"} <= without and f"{own}dense.weight" not in without
    assert all(name in without for name, parameter in model.model.named_parameters() if parameter.dim() == 1)


def test_only_pretrainings_own_parts_are_frozen_under_full_finetuning(tmp_path):
    parts = {True: set(), False: set()}
    for name, parameter in made(tmp_path).model.named_parameters():
        words = name.split(".")
        parts[parameter.requires_grad].add(".".join(words[:2]) if words[0] == "objectives" else words[0])
    assert parts[False] == {"objectives.masked", "objectives.contrastive", "projections"}
    assert parts[True] == {"embeddings", "blocks", "objectives.classification"}
    assert classification._DROPOUT_INDEX == 0xFFFF


def test_adapters_are_low_rank_start_from_their_names_and_are_all_that_is_trained(tmp_path):
    model = made(tmp_path, tuning="lora", lora_rank=3, lora_alpha=6.0)
    adapters = {n: p for n, p in model.model.named_parameters() if "lora_" in n}
    head = {n for n, _ in model.model.named_parameters() if n.startswith("objectives.classification.head.")}
    assert {n for n, p in model.model.named_parameters() if p.requires_grad} == set(adapters) | head
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
