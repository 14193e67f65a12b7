"""presence_contrastive by definition: the dense masked logits of every pair, in the inputs' own precision."""

import torch
from torch import Tensor


def presence_contrastive_reference(
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: tuple[tuple[int, int], ...],
    logit_scale: Tensor,
    weights_BP: Tensor | None,
    loss_weights_BP: Tensor | None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See `m5ds.kernels.presence_contrastive.presence_contrastive`."""
    # All tensors stay in the graph when nothing is present: zero gradients, never None.
    anchor = features_BMD[:0].sum() + keys_CMD[:0].sum() + logit_scale * 0.0
    for weights in (weights_BP, loss_weights_BP):
        anchor = anchor if weights is None else anchor + weights[:0].sum()
    is_key_BC = positive_B[:, None] == torch.arange(keys_CMD.shape[0], device=positive_B.device)
    is_key_BC = torch.ones_like(is_key_BC) if groups is None else is_key_BC | (groups[0][:, None] != groups[1])
    rows = []
    for p, pair in enumerate(pairs):
        query_B = present_BM[:, list(pair)].all(1)
        key_C = keys_present_CM[:, list(pair)].all(1)
        for i, j in (pair, pair[::-1]):
            logits_BC = logit_scale * features_BMD[:, i] @ keys_CMD[:, j].T
            if weights_BP is not None:
                logits_BC = logits_BC * weights_BP[:, p, None]
            positive_logit_B = logits_BC.gather(1, positive_B[:, None])[:, 0][query_B]
            loss_b = (
                logits_BC[query_B].masked_fill(~(key_C & is_key_BC[query_B]), -torch.inf).logsumexp(1)
                - positive_logit_B
            )
            rows.append((loss_b if loss_weights_BP is None else loss_b * loss_weights_BP[query_B, p]).sum())
    return (torch.stack(rows) + anchor).view(len(pairs), 2)
