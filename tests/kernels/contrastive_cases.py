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


def gradients(loss_P2: torch.Tensor, arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """The gradient of a fixed weighted sum of the losses to every floating argument, by name."""
    weight_P2 = torch.linspace(0.5, 1.5, loss_P2.numel(), dtype=loss_P2.dtype).view(loss_P2.shape)
    tensors = {name: value for name, value in arguments.items() if value.requires_grad}
    grads = torch.autograd.grad((loss_P2 * weight_P2).sum(), list(tensors.values()), allow_unused=True)
    return dict(zip(tensors, grads, strict=True))


def without_weights(arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in arguments.items() if not name.endswith("weights_BP")}
