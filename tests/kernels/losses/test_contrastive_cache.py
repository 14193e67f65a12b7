"""The two-pass gradient cache: micro-batches give the whole batch's gradients, on one rank and on two."""

import pytest
import torch
from contrastive_cases import PAIRS_ALL
from embed_cases import all_patterns

from m5ds.kernels.presence_contrastive import presence_contrastive
from m5ds.kernels.presence_contrastive.gradient_cache import CachedGradients, Gather, cached_gradients

_PRESENT = all_patterns()[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
_COEFFICIENT = torch.linspace(0.1, 1.0, 20, dtype=torch.float64).view(10, 2)


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
    return loss, list(torch.autograd.grad((loss * _COEFFICIENT).sum(), list(encoder.parameters())))


def _two_passes(
    encoder: _Encoder, x: torch.Tensor, present: torch.Tensor, sizes: list[int], gather: Gather | None = None
) -> tuple[CachedGradients, list[torch.Tensor]]:
    with torch.no_grad():
        parts = [torch.cat(values) for values in zip(*(encoder(part) for part in x.split(sizes)), strict=True)]
    cache = cached_gradients(
        parts[0],
        present,
        PAIRS_ALL,
        encoder.logit_scale,
        _COEFFICIENT,
        gather=gather,
        weights_BP=parts[1],
        loss_weights_BP=parts[2],
    )
    total = [torch.zeros_like(parameter) for parameter in encoder.parameters()]
    start = 0
    for number, part in enumerate(x.split(sizes)):
        features, weights, loss_weights = encoder(part)
        scale = encoder.logit_scale if number == 0 else None
        surrogate = cache.surrogate(slice(start, start + len(part)), features, scale, weights, loss_weights)
        grads = torch.autograd.grad(surrogate, list(encoder.parameters()), allow_unused=True)
        total = [a if g is None else a + g for a, g in zip(total, grads, strict=True)]
        start += len(part)
    return cache, total


@pytest.mark.parametrize("sizes", [[32], [16, 16], [1, 30, 1], [0, 20, 12]])
def test_micro_batches_give_the_whole_batchs_losses_and_gradients(sizes: list[int]) -> None:
    encoder, x = _Encoder(), torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    want_loss, want = _whole(encoder, x)
    cache, got = _two_passes(encoder, x, _PRESENT, sizes)
    torch.testing.assert_close(cache.losses_P2, want_loss.detach())
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
    loss = presence_contrastive(*arguments, encoder.logit_scale, weights, loss_weights)
    want = torch.autograd.grad((loss * _COEFFICIENT).sum(), list(encoder.parameters()))
    cache, got = _two_passes(encoder, x[18:], _PRESENT[18:], [5, 9], gather)
    torch.testing.assert_close(cache.losses_P2, loss.detach())
    for grad, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_passes_that_disagree_are_named() -> None:
    features = torch.randn(4, 5, 3)
    cache = cached_gradients(features, torch.ones(4, 5).bool(), PAIRS_ALL, torch.tensor(1.0), torch.ones(10, 2))
    with pytest.raises(ValueError, match="rows"):
        cache.surrogate(slice(0, 2), features)
    with pytest.raises(ValueError, match="weights_BP"):
        cache.surrogate(slice(0, 4), features, weights_BP=torch.ones(4, 10))
