"""The sigmoid loss, and products of one group: by hand, over ranks and micro-batches."""

import dataclasses
import itertools
import math

import pytest
import torch
from model_cases import all_patterns, backward, batch_of, build, pools_of, run, tiny_spec
from torch.nn.functional import softplus

from m5ds.model.objectives.contrastive import InfoNCE
from m5ds.model.objectives.pool import Collected, PoolInputs
from m5ds.model.objectives.sigmoid import SigmoidLoss

PAIRS = ((0, 1), (1, 2))
PRESENT = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
GROUP = torch.tensor([5, 5, 7, 8, 5, 9, 8])
COEFFICIENT = torch.tensor([0.75, 0.375], dtype=torch.float64)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(loss, grouped=False, weighed=True):
    scalars = torch.tensor(2.5).double() if isinstance(loss, InfoNCE) else torch.tensor([2.5, -1.0]).double()
    weights = [random(7, 2, seed=1), random(7, 2, seed=2).abs()] if weighed else [None, None]
    values = [random(7, 3, 4, seed=0), PRESENT, scalars, *weights, GROUP if grouped else None]
    return PoolInputs(*(v.requires_grad_() if v is not None and v.is_floating_point() else v for v in values))


def keys_of(b, has_both, group):
    """The products that query b is compared with: its own, and those of other groups."""
    return [c for c in range(len(has_both)) if has_both[c] and (c == b or group is None or group[c] != group[b])]


def sigmoid_by_hand(given):
    scale, bias = given.scalars
    sums = []
    for p, (i, j) in enumerate(PAIRS):
        has_both, total = PRESENT[:, i] & PRESENT[:, j], torch.zeros(()).double()
        for b in has_both.nonzero().flatten().tolist():
            weight = 1.0 if given.logit_weight_BK is None else given.logit_weight_BK[b, p]
            for c in keys_of(b, has_both, given.group_B):
                logit = (scale * given.features_BMR[b, i] @ given.features_BMR[c, j] + bias) * weight
                sign = 1.0 if b == c else -1.0
                loss = -torch.log(torch.sigmoid(sign * logit))
                total = total + loss * (1.0 if given.loss_weight_BK is None else given.loss_weight_BK[b, p])
        sums.append(total)
    return torch.stack(sums)


def info_nce_by_hand(given):
    sums = []
    for p, (i, j) in enumerate(PAIRS):
        has_both, total = PRESENT[:, i] & PRESENT[:, j], torch.zeros(()).double()
        for b in has_both.nonzero().flatten().tolist():
            keys = keys_of(b, has_both, given.group_B)
            for query, key in ((i, j), (j, i)):
                logits = given.scalars * given.features_BMR[keys, key] @ given.features_BMR[b, query]
                if given.logit_weight_BK is not None:
                    logits = logits * given.logit_weight_BK[b, p]
                loss = torch.logsumexp(logits, 0) - logits[keys.index(b)]
                total = total + loss / 2 * (1.0 if given.loss_weight_BK is None else given.loss_weight_BK[b, p])
        sums.append(total)
    return torch.stack(sums)


class TwoRanks:
    """A gather that brings the same products a second time, as another rank's, ahead of this one's."""

    def __call__(self, features_BMR, present_BM):
        return torch.cat([features_BMR.detach(), features_BMR]), torch.cat([present_BM] * 2), len(features_BMR)

    def integers(self, values_B):
        return torch.cat([values_B + 100, values_B])


LOSSES = [(SigmoidLoss(PAIRS), sigmoid_by_hand), (InfoNCE(PAIRS), info_nce_by_hand)]


@pytest.mark.parametrize("sizes", [(7,), (2, 3, 2), (0, 4, 0, 3)])
@pytest.mark.parametrize(("grouped", "weighed"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("loss", "by_hand"), LOSSES, ids=["sigmoid", "infonce"])
def test_micro_batches_have_the_losses_and_gradients_of_the_whole_batch(loss, by_hand, grouped, weighed, sizes):
    given = inputs(loss, grouped, weighed)
    expected = by_hand(given)
    starts = [0, *itertools.accumulate(sizes)]
    parts = []
    for first, last in itertools.pairwise(starts):
        cut = {n: v[first:last] for n, v in given._asdict().items() if v is not None and n != "scalars"}
        parts.append(given._replace(**cut))
    pool = Collected(loss, None)
    with torch.no_grad():
        for part in parts:
            pool(part, COEFFICIENT)
    replayed = pool.close()
    sums = [replayed(part, COEFFICIENT) for part in parts]
    torch.testing.assert_close(sum(sums), expected.detach(), check_dtype=False)
    leaves = [value for value in given if value is not None and value.requires_grad]
    found = torch.autograd.grad((sum(sums) * COEFFICIENT).sum(), leaves)
    wanted = torch.autograd.grad((expected * COEFFICIENT).sum(), leaves)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def test_products_of_other_ranks_are_negatives_of_the_sigmoid():
    given = inputs(SigmoidLoss(PAIRS), weighed=False)
    alone = SigmoidLoss(PAIRS).sums(given, TwoRanks())
    scale, bias = given.scalars
    for p, (i, j) in enumerate(PAIRS):
        both = (PRESENT[:, i] & PRESENT[:, j]).nonzero().flatten()
        logits = scale * given.features_BMR[both, i] @ given.features_BMR[both, j].T + bias
        own = softplus(torch.where(torch.eye(len(both), dtype=torch.bool), -logits, logits)).sum()
        torch.testing.assert_close(alone[p], own + softplus(logits).sum(), check_dtype=False)


def test_groups_travel_with_the_gather_and_spare_the_own_ranks_variants_alone():
    """The other rank's copies have other groups, so that they stay negatives."""
    given = inputs(SigmoidLoss(PAIRS), grouped=True, weighed=False)
    apart = given._replace(group_B=torch.arange(7))
    for loss in (SigmoidLoss(PAIRS), InfoNCE(PAIRS)):
        own = inputs(loss, grouped=True, weighed=False)
        spared = loss.sums(own, TwoRanks())
        whole = loss.sums(own._replace(group_B=apart.group_B), TwoRanks())
        assert (spared < whole).all()


@pytest.mark.parametrize("kind", ["contrastive", "sigmoid"])
def test_variants_of_a_product_do_not_push_each_other_apart(tmp_path, kind):
    """Two products of one group alone in a batch: no negative is left, so nothing moves their features."""
    sections = f"objectives={{masked: null, contrastive: null, own: {{kind: {kind}, pairs: all, positives: group}}}}"
    model = build(tiny_spec(tmp_path, sections)).double()
    batch = batch_of(model.spec, [[True] * 5] * 2)
    batch = dataclasses.replace(batch, group_B=torch.tensor([3, 3]))
    other = dataclasses.replace(batch, group_B=torch.tensor([3, 4]))
    if kind == "contrastive":
        loss = run(model, batch).loss
        assert loss.item() == 0.0
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        assert not any(value.any() for value in found if value is not None)
    assert run(model, batch).loss < run(model, other).loss
    assert torch.equal(run(model, other).loss, run(model, dataclasses.replace(batch, group_B=None)).loss)


def test_the_sigmoid_starts_where_its_section_says_and_trains_on_every_pattern(tmp_path):
    sections = "objectives={masked: {}, sigmoid: {pairs: all, temperature: 0.2, bias: -3.5, weight: 0.5}}"
    model = build(tiny_spec(tmp_path, sections, "blocks.unimodal.repeat=1"))
    objective = model.objectives.sigmoid
    assert objective.logit_scale.item() == pytest.approx(math.log(5)) and objective.logit_bias.item() == -3.5
    shown = {name: float(convert(value.detach())) for name, (value, convert) in objective.logged_parameters().items()}
    assert shown == {"sigmoid/temperature": pytest.approx(0.2), "sigmoid/bias": -3.5}
    found = backward(model, batch_of(model.spec, all_patterns()))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert found["objectives.sigmoid.logit_bias"].any() and found["objectives.sigmoid.logit_scale"].any()
    assert "objectives.sigmoid.logit_bias" in model.no_weight_decay_names()


def test_all_pools_of_a_model_are_made_by_name(tmp_path):
    model = build(tiny_spec(tmp_path, "objectives.sigmoid={pairs: all}"))
    assert set(pools_of(model, None)) == {"contrastive", "sigmoid"}
