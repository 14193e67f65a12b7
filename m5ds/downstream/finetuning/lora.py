"""Low-rank adapters (Hu et al., "LoRA", ICLR 2022) through peft, and their weights folded back into the model's."""

from typing import Any

import torch
from torch import Tensor, nn

from m5ds.model import initialization

TARGETS = ("qkv", "out", "fc1", "fc2")
"""Linear layers of the blocks that get an adapter."""
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(encoder: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Adapters of that rank on the blocks' linear layers; everything else of the encoder is frozen.

    The down projection starts from the seed and its name, the up projection from zero, so the model starts unchanged.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float serves as well
        target_modules=rf".*\.({'|'.join(TARGETS)})",
        lora_dropout=0.0,
        init_lora_weights=False,
    )
    # Into the blocks alone: for a whole PreTrainedModel peft asks after an input embedding that products do not have.
    inject_adapter_in_model(settings, encoder.get_submodule("blocks"))
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.endswith((_DOWN, _UP)))
        with torch.no_grad():
            if name.endswith(_DOWN):
                parameter.copy_(initialization.normal(parameter.shape, seed, name, parameter.shape[1] ** -0.5))
            elif name.endswith(_UP):
                parameter.zero_()


def merged(weights: dict[str, Tensor], finetune: dict[str, Any]) -> dict[str, Tensor]:
    """The weights with every adapter folded in (W + alpha / rank * up @ down) and the names of the plain model.

    `finetune` is the checkpoint's record of the finetuning. Weights without adapters pass unchanged.
    """
    if not any(name.endswith(_DOWN) for name in weights):
        return weights
    scale = finetune["lora_alpha"] / finetune["lora_rank"]
    plain = {}
    for name, value in weights.items():
        if name.endswith((_DOWN, _UP)):
            continue
        if _BASE in name:
            module, _, own_name = name.partition(_BASE)
            name = f"{module}.{own_name}"
            if own_name == "weight":
                value = value + scale * (weights[module + _UP] @ weights[module + _DOWN])
        plain[name] = value
    return plain
