"""Inputs of presence_contrastive for the tests."""

import torch

PAIRS_ALL = tuple((i, j) for i in range(5) for j in range(i + 1, 5))
PAIRS_CHAIN = tuple((i, i + 1) for i in range(4))


def case(
    keys_present_CM: torch.Tensor,
    local: slice,
    *,
    width: int = 12,
    num_pairs: int = 10,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Arguments by name: a gathered batch with that presence, of which `local` is this rank's slice."""
    generator = torch.Generator().manual_seed(seed)
    num_keys, num_modalities = keys_present_CM.shape

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positive_B = torch.arange(num_keys)[local]
    keys_CMD = torch.nn.functional.normalize(draw(num_keys, num_modalities, width), dim=-1)
    features_BMD = torch.nn.functional.normalize(draw(len(positive_B), num_modalities, width), dim=-1)
    float_arguments = {
        "features_BMD": features_BMD,
        "keys_CMD": keys_CMD,
        "logit_scale": torch.tensor(7.0, dtype=torch.float64),
        "weights_BP": 0.5 + draw(len(positive_B), num_pairs).abs(),
        "loss_weights_BP": 0.5 + draw(len(positive_B), num_pairs).abs(),
    }
    in_float32 = ("logit_scale", "weights_BP", "loss_weights_BP")
    wide = torch.promote_types(dtype, torch.float32)
    return {
        **{n: v.to(wide if n in in_float32 else dtype).requires_grad_() for n, v in float_arguments.items()},
        "present_BM": keys_present_CM[local].clone(),
        "keys_present_CM": keys_present_CM,
        "positive_B": positive_B,
    }


def lonely_case(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Of PAIRS_ALL, every pair is held by one product: a query with no key but its own."""
    present_CM = torch.zeros(len(PAIRS_ALL), 5, dtype=torch.bool)
    for product, pair in enumerate(PAIRS_ALL):
        present_CM[product, list(pair)] = True
    return case(present_CM, slice(0, len(PAIRS_ALL)), dtype=dtype)


def cancelling_case(kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Features whose gradients are small differences of large terms, without weights.

    `alike`: all point nearly the same way, as in a model just initialised. `confident`: each query matches its own key
    and no other, so that its positive has a probability of 1 - 1e-5.
    """
    generator = torch.Generator().manual_seed(3)
    num_products, width = 40, 64
    arguments = without_weights(case(torch.ones(num_products, 5, dtype=torch.bool), slice(0, None), width=width))
    if kind == "alike":
        common_D = torch.randn(width, generator=generator, dtype=torch.float64) / 8
        changed = {name: common_D + 1e-3 * arguments[name].detach() for name in ("features_BMD", "keys_CMD")}
        scale = 100.0
    else:
        identity_BMD = torch.eye(num_products, width, dtype=torch.float64)[:, None].expand(-1, 5, -1)
        changed = {name: identity_BMD + 0.02 * arguments[name].detach() for name in ("features_BMD", "keys_CMD")}
        scale = 15.0
    arguments |= {name: torch.nn.functional.normalize(value, dim=-1) for name, value in changed.items()}
    arguments["logit_scale"] = torch.tensor(scale, dtype=torch.float64)
    return {
        name: value.detach().to(dtype).requires_grad_() if value.is_floating_point() else value
        for name, value in arguments.items()
    }


def gradients(loss_P2: torch.Tensor, arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """The gradient of a fixed weighted sum of the losses to every floating argument, by name."""
    weight_P2 = torch.linspace(0.5, 1.5, loss_P2.numel(), dtype=loss_P2.dtype).view(loss_P2.shape)
    tensors = {name: value for name, value in arguments.items() if value.requires_grad}
    grads = torch.autograd.grad((loss_P2 * weight_P2).sum(), list(tensors.values()), allow_unused=True)
    return dict(zip(tensors, grads, strict=True))


def without_weights(arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in arguments.items() if not name.endswith("weights_BP")}
