"""Cross-entropy over a vocabulary on masked rows only, in chunks (DESIGN section 3.4).

Shape letters: K masked rows, D width, V vocabulary.
"""

import torch
from torch import Tensor

from m5ds.kernels.common.dispatch import choose_path
from m5ds.kernels.masked_cross_entropy.reference import masked_cross_entropy_reference
from m5ds.kernels.masked_cross_entropy.torch_path import masked_cross_entropy_torch

__all__ = ["masked_cross_entropy"]


def masked_cross_entropy(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    target_K: Tensor,
    chunk_rows: int = 1024,
    logit_weight_K: Tensor | None = None,
    loss_weight_K: Tensor | None = None,
    path: str | None = None,
) -> Tensor:
    """Sum of cross-entropies of softmax(hidden weight^T + bias) at `target_K` (int64): a float32 scalar.

    `hidden_KD`, `weight_VD`, `bias_V` share one dtype and device; at most chunk_rows x V logits exist at a time and the
    backward computes them again. K = 0 gives 0 and zero gradient tensors. Call it inside the forward of the module that
    owns the weight (ZeRO-3). Optional weights of each row multiply its logits and its loss, with gradient (DESIGN 3.4,
    harmony). `ValueError` names a bad argument. It runs the torch path on every device.
    """
    if hidden_KD.dim() != 2 or not hidden_KD.is_floating_point():
        raise ValueError(f"hidden_KD must be a floating [K, D], got {hidden_KD.dtype} {list(hidden_KD.shape)}")
    if weight_VD.dim() != 2 or weight_VD.shape[1] != hidden_KD.shape[1]:
        raise ValueError(
            f"weight_VD has shape {list(weight_VD.shape)}, hidden_KD {list(hidden_KD.shape)}"
            " (an empty weight means it was sharded: call the op inside its owner's forward)"
        )
    if bias_V.shape != weight_VD.shape[:1]:
        raise ValueError(f"bias_V has shape {list(bias_V.shape)}, weight_VD {list(weight_VD.shape)}")
    if target_K.dtype != torch.int64 or target_K.shape != hidden_KD.shape[:1]:
        raise ValueError(f"target_K must be int64 [{hidden_KD.shape[0]}], got {target_K.dtype} {list(target_K.shape)}")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be positive, got {chunk_rows}")
    for name, value in (("weight_VD", weight_VD), ("bias_V", bias_V)):
        if value.dtype != hidden_KD.dtype:
            raise ValueError(f"{name} is {value.dtype}, hidden_KD is {hidden_KD.dtype}")
    given = {"weight_VD": weight_VD, "bias_V": bias_V, "target_K": target_K}
    for name, weight_K in (("logit_weight_K", logit_weight_K), ("loss_weight_K", loss_weight_K)):
        if weight_K is None:
            continue
        if weight_K.shape != target_K.shape or not weight_K.is_floating_point():
            raise ValueError(f"{name} must be floating [{len(target_K)}], got {weight_K.dtype} {list(weight_K.shape)}")
        given[name] = weight_K
    for name, value in given.items():
        if value.device != hidden_KD.device:
            raise ValueError(f"{name} is on {value.device}, hidden_KD on {hidden_KD.device}")
    # Reading an accelerator's tensor would wait for it.
    if len(target_K) and target_K.device.type == "cpu":
        lowest, highest = (int(value) for value in torch.aminmax(target_K))
        if lowest < 0 or highest >= len(weight_VD):
            raise ValueError(f"target_K holds {lowest} to {highest}, the vocabulary has {len(weight_VD)} entries")
    arguments = (hidden_KD, weight_VD, bias_V, target_K, logit_weight_K, loss_weight_K)
    if choose_path("masked_cross_entropy", hidden_KD.device, path, available=("reference", "torch")) == "reference":
        return masked_cross_entropy_reference(*arguments)
    return masked_cross_entropy_torch(*arguments, chunk_rows)
