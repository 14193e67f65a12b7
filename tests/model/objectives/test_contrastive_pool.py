"""The pool of a step with accumulation: losses and gradients of the whole batch, handed out over micro-batches."""

import pytest
import torch
from model_cases import batch_of, build, run, tiny_spec
from torch import Tensor

from m5ds.model.objectives.contrastive import InfoNCE
from m5ds.model.objectives.pool import Collected, Gathered, PoolInputs

PAIRS = ((0, 1), (1, 2))
PRESENT = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
COEFFICIENT = torch.tensor([0.75, 0.375], dtype=torch.float64)
SIZES = ((2, 3, 2), (0, 4, 0, 3), (7,))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(weighed: bool) -> list[Tensor | None]:
    """Features, weights on logits, weights on losses and the scale, all with gradient."""
    values = [random(7, 3, 4, seed=0), random(7, 2, seed=1), random(7, 2, seed=2).abs(), torch.tensor(2.5).double()]
    chosen = [value if weighed or number in (0, 3) else None for number, value in enumerate(values)]
    return [None if value is None else value.requires_grad_() for value in chosen]


def by_hand(features, logit_weight, loss_weight, scale, others=None, others_present=None) -> Tensor:
    """[P]: the sum over products of both directions' mean, each query against every product that has both."""
    keys = features if others is None else torch.cat([others, features])
    present = PRESENT if others is None else torch.cat([others_present, PRESENT])
    first = len(keys) - len(features)
    sums = []
    for number, (i, j) in enumerate(PAIRS):
        total = torch.zeros((), dtype=torch.float64)
        for b in range(len(features)):
            if not (PRESENT[b, i] and PRESENT[b, j]):
                continue
            has_both = present[:, i] & present[:, j]
            for query, key in ((i, j), (j, i)):
                logits = scale * (keys[:, key] @ features[b, query])
                logits = logits if logit_weight is None else logits * logit_weight[b, number]
                loss = torch.logsumexp(logits[has_both], 0) - logits[first + b]
                total = total + loss / 2 * (1.0 if loss_weight is None else loss_weight[b, number])
        sums.append(total)
    return torch.stack(sums)


def given(features, scale, logit_weight=None, loss_weight=None, present=PRESENT) -> PoolInputs:
    return PoolInputs(features, present, scale, logit_weight, loss_weight)


def two_passes(pool: Collected, values: list, sizes: tuple[int, ...]) -> list[Tensor]:
    """What the pools return for each micro-batch in the second pass."""
    features, logit_weight, loss_weight, scale = values

    def call(pool, rows: slice) -> Tensor:
        weights = [None if value is None else value[rows] for value in (logit_weight, loss_weight)]
        return pool(given(features[rows], scale, *weights, present=PRESENT[rows]), COEFFICIENT)

    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    with torch.no_grad():
        for rows in parts:
            assert torch.equal(call(pool, rows), torch.zeros_like(COEFFICIENT))
    replayed = pool.close()
    return [call(replayed, rows) for rows in parts]


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_micro_batches_together_have_the_losses_and_gradients_of_the_whole_batch(sizes, weighed):
    """Also where the first micro-batch has no product: the losses are then still handed out once."""
    values = inputs(weighed)
    sums = two_passes(Collected(InfoNCE(PAIRS), None), values, sizes)
    expected = by_hand(*values)
    torch.testing.assert_close(sums[0], expected.detach(), check_dtype=False)
    assert all(not later.any() for later in sums[1:])
    inputs_given = [value for value in values if value is not None]
    factor = 3.0  # by which an engine scales a loss
    found = torch.autograd.grad(factor * (sum(sums) * COEFFICIENT).sum(), inputs_given)
    wanted = torch.autograd.grad(factor * (expected * COEFFICIENT).sum(), inputs_given)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def test_products_of_other_ranks_are_negatives(monkeypatch):
    values, others, others_present = inputs(True), random(3, 3, 4, seed=5), PRESENT[:3].flip(0)

    def gather(features_BMR, present_BM):
        return torch.cat([others, features_BMR]), torch.cat([others_present, present_BM]), len(others)

    sums = two_passes(Collected(InfoNCE(PAIRS), gather), values, (3, 4))
    expected = by_hand(*values, others, others_present)
    torch.testing.assert_close(sums[0], expected.detach(), check_dtype=False)
    found = torch.autograd.grad((sum(sums) * COEFFICIENT).sum(), values)
    wanted = torch.autograd.grad((expected * COEFFICIENT).sum(), values)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def test_terms_that_weigh_nothing_give_no_gradient():
    values = inputs(False)
    pool = Collected(InfoNCE(PAIRS), None)
    nothing = torch.zeros_like(COEFFICIENT)
    pool(given(values[0].detach(), values[3].detach()), nothing)
    sums = pool.close()(given(values[0], values[3]), nothing)
    assert sums.all()
    for gradient in torch.autograd.grad((sums * nothing).sum(), [values[0], values[3]]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gradients_have_the_types_of_what_they_belong_to():
    features, scale = inputs(False)[0].detach().bfloat16().requires_grad_(), torch.tensor(2.5, requires_grad=True)
    pool = Collected(InfoNCE(PAIRS), None)
    pool(given(features, scale), COEFFICIENT.float())
    (pool.close()(given(features, scale), COEFFICIENT.float()) * COEFFICIENT.float()).sum().backward()
    assert features.grad.dtype == torch.bfloat16 and features.grad.any() and scale.grad.dtype == torch.float32


def test_one_micro_batch_needs_one_pass():
    values = inputs(True)
    features, logit_weight, loss_weight, scale = values
    sums = Gathered(InfoNCE(PAIRS), None)(given(features, scale, logit_weight, loss_weight), COEFFICIENT)
    expected = by_hand(*values)
    torch.testing.assert_close(sums, expected, check_dtype=False)
    found = torch.autograd.grad((sums * COEFFICIENT).sum(), values)
    wanted = torch.autograd.grad((expected * COEFFICIENT).sum(), values)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def test_the_first_pass_keeps_no_graph_and_computes_no_masked_loss(tmp_path):
    model = build(tiny_spec(tmp_path))
    batch = batch_of(model.spec, [[True] * 5] * 3)
    collected = Collected(model.objectives.contrastive.global_loss, None)
    first = run(model, batch, pools={"contrastive": collected}, chosen=("contrastive",))
    assert set(first.losses) == {term.name for term in model.objectives.contrastive.terms}
    second = run(model, batch, pools={"contrastive": collected.close()})
    whole = run(model, batch)
    assert set(second.losses) == set(whole.losses)
    torch.testing.assert_close(second.loss, whole.loss)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.losses["itc/image-text"].backward()
