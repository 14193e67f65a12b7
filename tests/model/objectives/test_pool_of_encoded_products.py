"""The two passes through an encoder: micro-batches give the whole batch's gradients, on one rank and on two."""

import pytest
import torch
from contrastive_cases import PAIRS_ALL
from embed_cases import all_patterns

from m5ds.kernels.presence_contrastive import presence_contrastive
from m5ds.model.objectives.contrastive import InfoNCE
from m5ds.model.objectives.pool import Collected, Gather, PoolInputs

_PRESENT = all_patterns()[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
_COEFFICIENT = torch.linspace(0.1, 1.0, 10, dtype=torch.float64)


class _Encoder(torch.nn.Module):
    """Features and both kinds of weights from one input per product, so that every gradient has somewhere to flow."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = torch.nn.Parameter(torch.randn(6, 5 * 8, generator=generator, dtype=torch.float64))
        self.weigh = torch.nn.Parameter(torch.randn(6, 20, generator=generator, dtype=torch.float64))
        self.logit_scale = torch.nn.Parameter(torch.tensor(5.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features_BMD = torch.nn.functional.normalize((x @ self.weight).view(-1, 5, 8), dim=-1)
        weights_BP, loss_weights_BP = (x @ self.weigh).sigmoid().split(10, dim=1)
        return features_BMD, weights_BP, loss_weights_BP


def _whole(encoder: _Encoder, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    features, weights, loss_weights = encoder(x)
    loss = presence_contrastive(
        features,
        features,
        _PRESENT,
        _PRESENT,
        torch.arange(32),
        PAIRS_ALL,
        encoder.logit_scale,
        weights,
        loss_weights,
    )
    loss_P = loss.mean(1)
    return loss_P, list(torch.autograd.grad((loss_P * _COEFFICIENT).sum(), list(encoder.parameters())))


def _inputs(encoder: _Encoder, x: torch.Tensor, present: torch.Tensor) -> PoolInputs:
    features, weights, loss_weights = encoder(x)
    return PoolInputs(features, present, encoder.logit_scale, weights, loss_weights)


def _two_passes(
    encoder: _Encoder, x: torch.Tensor, present: torch.Tensor, sizes: list[int], gather: Gather | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    parts = list(zip(x.split(sizes), present.split(sizes), strict=True))
    collected = Collected(InfoNCE(PAIRS_ALL), gather)
    with torch.no_grad():
        for part, here in parts:
            collected(_inputs(encoder, part, here), _COEFFICIENT)
    replayed = collected.close()
    total = [torch.zeros_like(parameter) for parameter in encoder.parameters()]
    sums = torch.zeros_like(_COEFFICIENT)
    for part, here in parts:
        sums_P = replayed(_inputs(encoder, part, here), _COEFFICIENT)
        sums = sums + sums_P.detach()
        grads = torch.autograd.grad((sums_P * _COEFFICIENT).sum(), list(encoder.parameters()))
        total = [a + g for a, g in zip(total, grads, strict=True)]
    return sums, total


@pytest.mark.parametrize("sizes", [[32], [16, 16], [1, 30, 1], [0, 20, 12]])
def test_micro_batches_give_the_whole_batchs_losses_and_gradients(sizes: list[int]) -> None:
    encoder, x = _Encoder(), torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    want_loss, want = _whole(encoder, x)
    found, got = _two_passes(encoder, x, _PRESENT, sizes)
    torch.testing.assert_close(found, want_loss.detach())
    for grad, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_a_gathered_pool_is_the_pool_and_its_gradient_reaches_the_features_as_keys_too() -> None:
    """This rank holds products 18 to 32; the other rank's features come from the gather."""
    encoder, x = _Encoder(), torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    remote = encoder(x[:18])[0].detach()

    def gather(features: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        return torch.cat([remote, features]), _PRESENT, 18

    features, weights, loss_weights = encoder(x[18:])
    keys, keys_present_CM, first_row = gather(features, _PRESENT[18:])
    arguments = (features, keys, _PRESENT[18:], keys_present_CM, torch.arange(14) + first_row, PAIRS_ALL)
    loss = presence_contrastive(*arguments, encoder.logit_scale, weights, loss_weights).mean(1)
    want = torch.autograd.grad((loss * _COEFFICIENT).sum(), list(encoder.parameters()))
    found, got = _two_passes(encoder, x[18:], _PRESENT[18:], [5, 9], gather)
    torch.testing.assert_close(found, loss.detach())
    for grad, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_passes_that_disagree_are_named() -> None:
    features, present, scale = torch.randn(4, 5, 3), torch.ones(4, 5).bool(), torch.tensor(1.0)

    def replayed():
        collected = Collected(InfoNCE(PAIRS_ALL), None)
        collected(PoolInputs(features, present, scale, None, None), torch.ones(10))
        return collected.close()

    with pytest.raises(ValueError, match="rows"):
        replayed()(PoolInputs(features.repeat(2, 1, 1), present.repeat(2, 1), scale, None, None), torch.ones(10))
    with pytest.raises(ValueError, match="logit_weight_BK must be given in both passes or in neither"):
        replayed()(PoolInputs(features, present, scale, torch.ones(4, 10), None), torch.ones(10))
