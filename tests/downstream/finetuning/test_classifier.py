"""The classifier: what is trained, what the losses weigh, and that adapters fold back exactly."""

import numpy as np
import pytest
import torch
from classifier_cases import classifier
from downstream_examples import tiny_batch

from m5ds.downstream.finetuning import lora
from m5ds.downstream.finetuning.classifier import class_terms
from m5ds.downstream.settings import ClassificationConfig
from m5ds.model.objectives.classification import TASK

LABELS = [0, 1, 2, 0, -1, 1, 2, 2]


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_exactly_the_chosen_parameters_get_a_gradient(tmp_path, tuning):
    model = classifier(tmp_path, tuning=tuning)
    model.loss(tiny_batch(model.model, labels=LABELS)).backward()
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    with_gradient = {name for name, parameter in model.model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained
    own = "objectives.classification.head."
    assert {f"{own}dense.weight", f"{own}output.bias"} <= trained
    inside = {name for name in trained if not name.startswith(own)}
    if tuning == "full":
        assert any("blocks" in name for name in inside)
        assert not any(part in name for name in inside for part in ("objectives.", "projections.", "harmony."))
    elif tuning == "frozen":
        assert not inside
    else:
        assert inside and all("lora_" in name for name in inside)


def test_unlabelled_products_take_no_part(tmp_path):
    model = classifier(tmp_path)
    batch = tiny_batch(model.model, labels=LABELS)
    keep = [i for i, label in enumerate(LABELS) if label >= 0]
    labelled = tiny_batch(
        model.model,
        len(keep),
        labels=[LABELS[i] for i in keep],
        ids=[batch.ids[i] for i in keep],
        present_BM=batch.present_BM[keep],
    )
    torch.testing.assert_close(model.loss(batch), model.loss(labelled))


def test_a_batch_without_labels_has_a_zero_loss_that_can_be_differentiated(tmp_path):
    model = classifier(tmp_path)
    loss = model.loss(tiny_batch(model.model, labels=[-1] * 8))
    loss.backward()
    assert loss.item() == 0.0
    assert model.head.output.weight.grad.abs().max() == 0


def test_loss_over_micro_batches_equals_the_loss_over_the_batch(tmp_path):
    model = classifier(tmp_path)
    batch = tiny_batch(model.model, labels=LABELS)
    parts = [
        tiny_batch(
            model.model, 4, labels=LABELS[i : i + 4], ids=batch.ids[i : i + 4], present_BM=batch.present_BM[i : i + 4]
        )
        for i in (0, 4)
    ]
    count = sum(label >= 0 for label in LABELS)
    torch.testing.assert_close(sum(model.loss(part, **{TASK: count}) for part in parts), model.loss(batch))


def test_dropout_belongs_to_the_product_and_the_draw(tmp_path):
    model = classifier(tmp_path, dropout=0.5)
    batch = tiny_batch(model.model, labels=LABELS)
    alone = tiny_batch(model.model, 1, ids=[batch.ids[3]], present_BM=batch.present_BM[3:4])
    first = model.logits(batch, seed=1)
    torch.testing.assert_close(first, model.logits(batch, seed=1))
    torch.testing.assert_close(first[3:4], model.logits(alone, seed=1))
    assert not torch.equal(first, model.logits(batch, seed=2))
    assert not torch.equal(first, model.eval().logits(batch, seed=1))


def test_kept_features_are_scaled_so_that_their_mean_stays(tmp_path):
    model = classifier(tmp_path, dropout=0.75, dense_size=400)
    batch = tiny_batch(model.model, labels=LABELS)
    seen = []
    model.head.output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    dense = model.outputs(batch, seed=1)[0]
    kept = seen[0] != 0
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.04)
    torch.testing.assert_close(seen[0][kept], dense[kept] * 4)


@pytest.mark.parametrize("tuning", ["frozen", "full", "lora"])
def test_only_a_frozen_encoder_runs_without_dropout_in_training(tmp_path, tuning):
    model = classifier(tmp_path, "model.dropout=0.3", tuning=tuning)
    batch = tiny_batch(model.model, labels=LABELS)
    inside = [module for name, module in model.model.named_modules() if not name.startswith("objectives")]
    assert all(module.training == (tuning != "frozen") for module in inside)
    assert model.head.training
    trained, evaluated = model.outputs(batch, seed=1)[0], model.eval().outputs(batch, seed=1)[0]
    assert torch.equal(trained, evaluated) == (tuning == "frozen")
    assert not any(module.training for module in model.model.modules())


def test_hidden_modalities_change_nothing(tmp_path):
    model = classifier(tmp_path, modalities=["text", "image"])
    batch = tiny_batch(model.model, 4, present_BM=torch.ones(4, 5, dtype=torch.bool))
    poor = tiny_batch(model.model, 4, present_BM=torch.tensor([[1, 1, 0, 0, 0]] * 4).bool())
    torch.testing.assert_close(model.logits(batch), model.logits(poor))


def test_adapters_start_as_the_plain_model_and_fold_back_exactly(tmp_path):
    plain = classifier(tmp_path, tuning="frozen").eval()
    adapted = classifier(tmp_path, tuning="lora", lora_rank=2, lora_alpha=6.0).eval()
    batch = tiny_batch(plain.model)
    torch.testing.assert_close(plain.logits(batch), adapted.logits(batch))
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    weights = lora.merged(adapted.model.state_dict(), {"lora_rank": 2, "lora_alpha": 6.0})
    assert set(weights) == set(plain.model.state_dict())
    changed = adapted.logits(batch)
    assert not torch.allclose(changed, plain.logits(batch), atol=1e-3)
    plain.model.load_state_dict(weights)
    torch.testing.assert_close(plain.logits(batch), changed, atol=1e-5, rtol=1e-5)


def test_class_balanced_weights_follow_the_effective_number():
    count_C = np.array([1000, 10, 1, 0])
    weight_C, shift_C = class_terms(ClassificationConfig(loss="class_balanced", beta=0.99), count_C)
    effective = (1 - 0.99 ** count_C[:3]) / 0.01
    np.testing.assert_allclose(weight_C[:3] * effective, weight_C[0] * effective[0], rtol=1e-5)
    assert weight_C[3] == 0 and (shift_C == 0).all()
    assert (weight_C * count_C).sum() / count_C.sum() == pytest.approx(1.0)


def test_logit_adjustment_adds_the_log_share_in_training_only(tmp_path):
    count_C = np.array([6, 3, 1, 0])
    weight_C, shift_C = class_terms(ClassificationConfig(loss="logit_adjusted", tau=2.0), count_C)
    np.testing.assert_allclose(shift_C[:3], 2 * np.log([0.6, 0.3, 0.1]), rtol=1e-6)
    assert (weight_C == 1).all() and np.isfinite(shift_C).all()
    model, plain = classifier(tmp_path, loss="logit_adjusted", count_C=count_C), classifier(tmp_path)
    batch = tiny_batch(model.model, labels=LABELS)
    torch.testing.assert_close(model.logits(batch), plain.logits(batch))
    assert not torch.isclose(model.loss(batch), plain.loss(batch))


def test_head_starts_from_the_seed_alone(tmp_path):
    torch.manual_seed(0)
    first = classifier(tmp_path).head.state_dict()
    torch.manual_seed(1)
    second = classifier(tmp_path).head.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
