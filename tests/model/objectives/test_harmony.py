"""How losses weigh each other: the formulas, their minima, and where the weights act."""

import math

import pytest
import torch
from model_cases import all_patterns, backward, batch_of, build, run, tiny_spec

from m5ds.config import HarmonyConfig
from m5ds.model.objectives.base import Term
from m5ds.model.objectives.harmony import Harmony, HarmonyWeights, cosine_graph

TERMS = [Term(name=str(modalities), modalities=modalities) for modalities in ((0,), (1,), (2,), (0, 1), (1, 2))]
ALL_ON = (True,) * 5


def learned(**kwargs):
    return Harmony(HarmonyConfig(kind="learned", **kwargs), 3, TERMS)


def total_of(harmony, losses_K, active=ALL_ON):
    weights = harmony(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), active)
    return (losses_K * weights.terms.scale_K).sum() + weights.penalty


def test_learned_weights_start_equal_and_keep_their_sum():
    harmony = learned()
    with torch.no_grad():
        harmony.scores.copy_(torch.randn(5, generator=torch.Generator().manual_seed(1)))
    weights = harmony(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), ALL_ON)
    assert weights.terms.scale_K.sum().item() == pytest.approx(5.0)
    fresh = learned()(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), ALL_ON)
    assert torch.allclose(fresh.terms.scale_K, torch.ones(5)) and fresh.penalty.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_learned_scores_reach_the_finite_minimum_and_stay(strength):
    harmony = learned(strength=strength)
    losses_K = torch.tensor([0.1, 1.0, 3.0, 2.0, 0.5])
    optimizer = torch.optim.Adam(harmony.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        total_of(harmony, losses_K).backward()
        optimizer.step()
    expected = (-losses_K / strength).softmax(0)
    torch.testing.assert_close(harmony.scores.softmax(0), expected, atol=2e-3, rtol=1e-2)
    assert harmony.scores.abs().max() < 20
    least = -5 * strength * math.log((-losses_K / strength).exp().mean())
    assert total_of(harmony, losses_K).item() == pytest.approx(least, rel=1e-3)


def test_learned_terms_without_targets_get_no_gradient():
    harmony = learned()
    total_of(harmony, torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0]), (True, True, False, True, True)).backward()
    assert harmony.scores.grad[2] == 0 and harmony.scores.grad.abs().sum() > 0
    harmony.zero_grad()
    total_of(harmony, torch.zeros(5), (False,) * 5).backward()
    assert torch.equal(harmony.scores.grad, torch.zeros(5))


def test_an_objective_that_harmony_does_not_name_has_no_score(tmp_path):
    spec = tiny_spec(tmp_path, "harmony={kind: learned, objectives: [contrastive]}", "blocks.unimodal.repeat=1")
    model = build(spec)
    assert [name for name, _ in model.harmonised] == ["contrastive"] * 4 and model.harmony.scores.shape == (4,)
    with pytest.raises(ValueError, match="model.harmony.objectives names matching; the model has masked, contrastive"):
        build(tiny_spec(tmp_path, "harmony={kind: learned, objectives: [matching]}"))


def test_cosine_graph_is_the_released_formula_over_present_modalities():
    summary = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, False, True]])
    graph = cosine_graph(summary, present)[0]
    unit = torch.nn.functional.normalize(summary[0, [0, 2]], dim=-1)
    cosine = unit @ unit.T
    expected = torch.nn.functional.normalize(cosine * cosine.softmax(-1), dim=-1)
    torch.testing.assert_close(graph[[0, 2]][:, [0, 2]], expected)
    assert not graph[1].any() and not graph[:, 1].any()


def test_cosine_graph_of_aligned_modalities_weighs_pairs_as_published():
    graph = cosine_graph(torch.ones(1, 5, 4), torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(graph, torch.full((1, 5, 5), 1 / math.sqrt(5)))


@pytest.mark.parametrize("kind", ["learned", "cosine", "paper_literal"])
@pytest.mark.parametrize("weighs", ["losses", "logits", "both"])
def test_every_kind_trains_on_every_pattern(tmp_path, kind, weighs):
    spec = tiny_spec(tmp_path, f"harmony={{kind: {kind}, weighs: {weighs}}}", "blocks.unimodal.repeat=1")
    model = build(spec)
    found = backward(model, batch_of(spec, all_patterns()))
    assert all(torch.isfinite(value).all() for value in found.values())


def test_paper_literal_at_zero_gives_no_feature_gradient_and_only_turns_negative(tmp_path):
    spec = tiny_spec(tmp_path, "harmony={kind: paper_literal}", "blocks.unimodal.repeat=1")
    model = build(spec)
    found = backward(model, batch_of(spec, all_patterns()))
    scores = found.pop("harmony.scores")
    assert all(not value.any() for value in found.values())
    paired = [(m, m) for m in range(5)] + [(m, m + 1) for m in range(4)]
    assert all(scores[i, j] > 0 for i, j in paired), "descent makes every used score negative"


@pytest.mark.parametrize(("contrastive", "masked"), [(False, False), (True, False), (False, True), (True, True)])
def test_switches_say_what_the_cosine_graph_weighs(tmp_path, contrastive, masked):
    named = [name for name, is_on in (("contrastive", contrastive), ("masked", masked)) if is_on]
    switches = f"objectives: [{', '.join(named)}]"
    base = tiny_spec(tmp_path, "blocks.unimodal.repeat=1")
    spec = tiny_spec(tmp_path, "blocks.unimodal.repeat=1", f"harmony={{kind: cosine, weighs: both, {switches}}}")
    batch = batch_of(base, all_patterns())
    plain, weighed = run(build(base), batch), run(build(spec), batch)
    for name, loss in plain.losses.items():
        is_weighed = contrastive if name.startswith("itc") else masked
        assert torch.equal(loss, weighed.losses[name]) != is_weighed, name


def test_the_penalty_is_taken_once_per_optimizer_step(tmp_path):
    """Two micro-batches with the step's counts must add up to one, the entropy term of `learned` included."""
    spec = tiny_spec(tmp_path, "harmony={kind: learned}", "objectives.contrastive=null", "blocks.unimodal.repeat=1")
    model = build(spec)
    with torch.no_grad():
        model.harmony.scores.copy_(torch.linspace(-1, 1, len(model.harmony.scores)))
    patterns = all_patterns()
    whole = batch_of(spec, patterns)
    counts = model.count_targets(whole, 7)
    halves = [batch_of(spec, patterns[part], ids=whole.ids[part]) for part in (slice(0, 10), slice(10, None))]
    summed = sum(run(model, half, counts=counts).loss for half in halves)
    torch.testing.assert_close(summed, run(model, whole, counts=counts).loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "shape"), [("learned", (5,)), ("paper_literal", (3, 3))])
def test_scores_start_at_zero(kind, shape):
    harmony = Harmony(HarmonyConfig(kind=kind), 3, TERMS)
    assert torch.equal(harmony.scores, torch.zeros(shape))
    assert harmony.initial_value("scores") == 0.0 and harmony.initial_value("other") is None


def test_terms_that_take_no_part_have_weight_one_and_share_no_penalty():
    harmony = learned(strength=0.5)
    with torch.no_grad():
        harmony.scores.copy_(torch.tensor([0.0, math.log(3), 9.0, -4.0, 0.0]))
    weights = harmony(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), (True, True, False, False, False))
    torch.testing.assert_close(weights.terms.scale_K, torch.tensor([0.5, 1.5, 1.0, 1.0, 1.0]))
    # Twice the divergence of (1/4, 3/4) from equal shares.
    expected = 0.5 * 2 * (0.25 * math.log(0.25 * 2) + 0.75 * math.log(0.75 * 2))
    assert weights.penalty.item() == pytest.approx(expected, rel=1e-5)
    none = harmony(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), (False,) * 5)
    assert torch.equal(none.terms.scale_K, torch.ones(5))
    assert none.penalty == 0.0


@pytest.mark.parametrize("kind", ["learned", "paper_literal"])
def test_an_empty_batch_has_weights_of_one(kind):
    harmony = Harmony(HarmonyConfig(kind=kind), 3, TERMS)
    weights = harmony(torch.zeros(0, 3, 4), torch.ones(0, 3, dtype=torch.bool), ALL_ON)
    assert torch.equal(weights.terms.scale_K, torch.ones(5))


def test_without_harmony_there_is_no_weight():
    weights = Harmony(HarmonyConfig(), 3, TERMS)(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), ALL_ON)
    assert weights == HarmonyWeights() and weights.terms == (None,) * 3
