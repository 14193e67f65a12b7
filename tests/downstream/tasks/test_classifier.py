"""The classifier: what is trained, what the losses weigh, and that adapters fold back exactly."""

import numpy as np
import pytest
import torch
from downstream_examples import tiny_batch, tiny_model

from m5ds.downstream.settings import ClassificationConfig
from m5ds.downstream.tasks import lora
from m5ds.downstream.tasks.classifier import TASK, ProductClassifier, class_terms

LABELS = [0, 1, 2, 0, -1, 1, 2, 2]


def classifier(tmp_path, *overrides, **options):
    model = tiny_model(tmp_path, *overrides)
    settings = ClassificationConfig(**({"dense_size": 12, "dropout": 0.0} | options))
    return ProductClassifier(model, settings, num_classes=4, seed=0).train()


def loss_of(model, batch, **counts):
    return model(batch, counts={TASK: int((batch.label_B >= 0).sum())} | counts, seed=0).loss


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_exactly_the_chosen_parameters_get_a_gradient(tmp_path, tuning):
    model = classifier(tmp_path, tuning=tuning)
    loss_of(model, tiny_batch(model.encoder, labels=LABELS)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained
    assert {"head.dense.weight", "head.output.bias"} <= trained
    inside = {name for name in trained if name.startswith("encoder.")}
    if tuning == "full":
        assert any("blocks" in name for name in inside)
        assert not any(part in name for name in inside for part in ("heads.", "projections.", "harmony."))
    elif tuning == "frozen":
        assert not inside
    else:
        assert inside and all("lora_" in name for name in inside)


def test_unlabelled_products_take_no_part(tmp_path):
    model = classifier(tmp_path)
    batch = tiny_batch(model.encoder, labels=LABELS)
    keep = [i for i, label in enumerate(LABELS) if label >= 0]
    labelled = tiny_batch(
        model.encoder,
        len(keep),
        labels=[LABELS[i] for i in keep],
        ids=[batch.ids[i] for i in keep],
        present_BM=batch.present_BM[keep],
    )
    torch.testing.assert_close(loss_of(model, batch), loss_of(model, labelled))


def test_a_batch_without_labels_has_a_zero_loss_that_can_be_differentiated(tmp_path):
    model = classifier(tmp_path)
    loss = loss_of(model, tiny_batch(model.encoder, labels=[-1] * 8))
    loss.backward()
    assert loss.item() == 0.0
    assert model.head.output.weight.grad.abs().max() == 0


def test_loss_over_micro_batches_equals_the_loss_over_the_batch(tmp_path):
    model = classifier(tmp_path)
    batch = tiny_batch(model.encoder, labels=LABELS)
    parts = [
        tiny_batch(
            model.encoder, 4, labels=LABELS[i : i + 4], ids=batch.ids[i : i + 4], present_BM=batch.present_BM[i : i + 4]
        )
        for i in (0, 4)
    ]
    count = sum(label >= 0 for label in LABELS)
    torch.testing.assert_close(sum(loss_of(model, part, **{TASK: count}) for part in parts), loss_of(model, batch))


def test_dropout_belongs_to_the_product_and_the_draw(tmp_path):
    model = classifier(tmp_path, dropout=0.5)
    batch = tiny_batch(model.encoder, labels=LABELS)
    alone = tiny_batch(model.encoder, 1, ids=[batch.ids[3]], present_BM=batch.present_BM[3:4])
    first = model(batch, seed=1).logits_BC
    torch.testing.assert_close(first, model(batch, seed=1).logits_BC)
    torch.testing.assert_close(first[3:4], model(alone, seed=1).logits_BC)
    assert not torch.equal(first, model(batch, seed=2).logits_BC)
    assert not torch.equal(first, model.eval()(batch, seed=1).logits_BC)


def test_kept_features_are_scaled_so_that_their_mean_stays(tmp_path):
    model = classifier(tmp_path, dropout=0.75, dense_size=400)
    batch = tiny_batch(model.encoder, labels=LABELS)
    seen = []
    model.head.output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    dense = model(batch, seed=1).dense_BH
    kept = seen[0] != 0
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.04)
    torch.testing.assert_close(seen[0][kept], dense[kept] * 4)


@pytest.mark.parametrize("tuning", ["frozen", "full", "lora"])
def test_only_a_frozen_encoder_runs_without_dropout_in_training(tmp_path, tuning):
    model = classifier(tmp_path, "model.dropout=0.3", tuning=tuning)
    batch = tiny_batch(model.encoder, labels=LABELS)
    assert all(module.training == (tuning != "frozen") for module in model.encoder.modules())
    assert model.head.training
    trained, evaluated = model(batch, seed=1).dense_BH, model.eval()(batch, seed=1).dense_BH
    assert torch.equal(trained, evaluated) == (tuning == "frozen")
    assert not any(module.training for module in model.modules())


def test_hidden_modalities_change_nothing(tmp_path):
    model = classifier(tmp_path, modalities=["text", "image"])
    batch = tiny_batch(model.encoder, 4, present_BM=torch.ones(4, 5, dtype=torch.bool))
    poor = tiny_batch(model.encoder, 4, present_BM=torch.tensor([[1, 1, 0, 0, 0]] * 4).bool())
    torch.testing.assert_close(model(batch).logits_BC, model(poor).logits_BC)


def test_adapters_start_as_the_plain_model_and_fold_back_exactly(tmp_path):
    plain = classifier(tmp_path, tuning="frozen").eval()
    adapted = classifier(tmp_path, tuning="lora", lora_rank=2, lora_alpha=6.0).eval()
    batch = tiny_batch(plain.encoder)
    torch.testing.assert_close(plain(batch).logits_BC, adapted(batch).logits_BC)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    weights = lora.merged(adapted.state_dict(), {"lora_rank": 2, "lora_alpha": 6.0})
    assert set(weights) == set(plain.state_dict())
    changed = adapted(batch).logits_BC
    assert not torch.allclose(changed, plain(batch).logits_BC, atol=1e-3)
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(batch).logits_BC, changed, atol=1e-5, rtol=1e-5)


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
    model, plain = classifier(tmp_path, loss="logit_adjusted"), classifier(tmp_path)
    model.set_loss(ClassificationConfig(loss="logit_adjusted"), count_C)
    batch = tiny_batch(model.encoder, labels=LABELS)
    torch.testing.assert_close(model(batch).logits_BC, plain(batch).logits_BC)
    assert not torch.isclose(loss_of(model, batch), loss_of(plain, batch))


def test_head_starts_from_the_seed_alone(tmp_path):
    torch.manual_seed(0)
    first = classifier(tmp_path).head.state_dict()
    torch.manual_seed(1)
    second = classifier(tmp_path).head.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
