"""masked_cross_entropy by definition."""

import torch.nn.functional as F
from torch import Tensor


def masked_cross_entropy_reference(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    target_K: Tensor,
    logit_weight_K: Tensor | None = None,
    loss_weight_K: Tensor | None = None,
) -> Tensor:
    """See `m5ds.kernels.masked_cross_entropy.masked_cross_entropy`; in the inputs' own precision."""
    logits_KV = F.linear(hidden_KD, weight_VD, bias_V)
    if logit_weight_K is not None:
        logits_KV = logits_KV * logit_weight_K[:, None]
    loss_K = F.cross_entropy(logits_KV, target_K, reduction="none")
    return (loss_K if loss_weight_K is None else loss_K * loss_weight_K).sum()
