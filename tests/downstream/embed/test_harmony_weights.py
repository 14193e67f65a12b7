"""The modality weights that the report draws are those that the losses had."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from downstream_examples import tiny_batch, tiny_model

from m5ds.downstream.embed.features import FeatureOptions, encode
from m5ds.downstream.embed.harmony_weights import mean_weights
from m5ds.model.objectives.base import Term, TermWeights
from m5ds.model.objectives.harmony import HarmonyWeights, cosine_graph


def weights_of(model, batch):
    options = FeatureOptions(modalities=model.names, operation="concat", normalized=False)
    fused_NMD = encode(model, batch, options).reshape(batch.num_products, len(model.names), -1).numpy()
    return mean_weights(model, fused_NMD, batch.present_BM.numpy()), fused_NMD


def test_a_model_without_harmony_has_none(tmp_path):
    model = tiny_model(tmp_path)
    assert weights_of(model, tiny_batch(model))[0] == {"kind": "none"}


@pytest.mark.parametrize("weighs", ["losses", "logits"])
def test_cosine_weights_are_means_over_the_products_that_have_both(tmp_path, weighs):
    model = tiny_model(
        tmp_path,
        "model.harmony.kind=cosine",
        f"model.harmony.weighs={weighs}",
        "model.objectives.contrastive.pairs=all",
    )
    batch = tiny_batch(model)
    found, fused_NMD = weights_of(model, batch)
    graph_BMM = cosine_graph(torch.from_numpy(fused_NMD), batch.present_BM)
    assert (found["kind"], found["weighs"], found["names"]) == ("cosine", weighs, list(model.names))
    weight = np.array(found["weight"], dtype=float)
    for i, j in [*itertools.combinations(range(5), 2), *((m, m) for m in range(5))]:
        both_B = batch.present_BM[:, i] & batch.present_BM[:, j]
        assert weight[i, j] == weight[j, i] == pytest.approx(graph_BMM[both_B, i, j].mean().item(), abs=1e-4)


def test_learned_weights_sum_to_the_number_of_losses_and_leave_out_those_without_products(tmp_path):
    model = tiny_model(tmp_path, "model.harmony.kind=learned", "model.objectives.contrastive.pairs=all")
    with torch.no_grad():
        model.harmony.scores.copy_(torch.arange(float(len(model.harmony.scores))) / 10)
    present_BM = torch.ones(4, 5, dtype=torch.bool)
    present_BM[:, 4] = False
    found, _ = weights_of(model, tiny_batch(model, count=4, present_BM=present_BM))
    weight = np.array(found["weight"], dtype=float)
    assert np.isnan(weight[4]).all() and np.isnan(weight[:, 4]).all()
    used = weight[:4, :4][np.triu_indices(4)]
    assert used.sum() == pytest.approx(4 + 6, abs=1e-3) and np.ptp(used) > 0.1


def test_what_the_configuration_leaves_unweighed_is_one(tmp_path):
    model = tiny_model(
        tmp_path,
        "model.harmony.kind=cosine",
        "model.harmony.objectives=[contrastive]",
        "model.objectives.contrastive.pairs=all",
    )
    weight = np.array(weights_of(model, tiny_batch(model))[0]["weight"], dtype=float)
    np.testing.assert_array_equal(np.diag(weight), 1.0)
    assert weight[0, 1] != 1.0


TERMS = [Term(name=str(places), modalities=places) for places in ((0,), (2,), (0, 1), (1, 2))]


class Harmony:
    """Answers with made-up weights; remembers which losses were said to be there."""

    def __init__(self, **given):
        self.found, self.asked = HarmonyWeights(TermWeights(**given)), None

    def __call__(self, fused_NMD, present_NM, counted):
        self.asked = counted
        return self.found


def asked_of(harmony, present):
    spec = SimpleNamespace(harmony=SimpleNamespace(kind="cosine", weighs="losses"))
    both = SimpleNamespace(
        chosen=lambda: [("a", SimpleNamespace(terms=TERMS[:2])), ("b", SimpleNamespace(terms=TERMS[2:]))]
    )
    model = SimpleNamespace(
        spec=spec,
        names=("a", "b", "c"),
        objectives=both,
        harmonised=[("a", TERMS[0]), ("a", TERMS[1]), ("b", TERMS[2]), ("b", TERMS[3])],
        harmony=harmony,
        parameters=lambda: iter([torch.zeros(1)]),
    )
    return mean_weights(model, np.zeros((len(present), 3, 2), np.float32), np.array(present, bool))


def test_weights_are_those_of_the_products_that_have_the_modalities():
    present = [[1, 1, 0], [1, 0, 1], [0, 1, 0]]
    by_product = torch.tensor([[1.0, 100.0, 1.0, 1.0], [2.0, 200.0, 1.0, 1.0], [4.0, 400.0, 1.0, 1.0]])
    harmony = Harmony(loss_BK=by_product)
    found = asked_of(harmony, present)
    assert harmony.asked == (True, True, True, False)
    assert found["weight"] == [[1.5, 1.0, None], [1.0, None, None], [None, None, 200.0]]
    assert found["names"] == ["a", "b", "c"]
    common = Harmony(scale_K=torch.tensor([0.123456, 3, 5, 6]), loss_BK=by_product)
    found = asked_of(common, [[1, 1, 1]])
    assert found["weight"] == [[0.1235, 5.0, None], [5.0, None, 6.0], [None, 6.0, 3.0]]
    assert asked_of(Harmony(), [[1, 1, 0]])["weight"] == [[1.0, 1.0, None], [1.0, None, None], [None, None, None]]
    first = Harmony(loss_BK=by_product, logit_BK=by_product * 7)
    assert asked_of(first, present)["weight"][0][0] == 1.5
    logits = Harmony(logit_BK=by_product * 7)
    assert asked_of(logits, present)["weight"][0][0] == 10.5
