"""InfoNCE between modalities over the products that have both (PAPER Eq. 2, DESIGN sections 3.4 and 5).

Shape letters: B local products, C products of the gathered global batch, M modalities, D width, P pairs.
"""

from functools import partial

import torch
from torch import Tensor

from m5ds.kernels.common.dispatch import choose_path
from m5ds.kernels.presence_contrastive.reference import presence_contrastive_reference
from m5ds.kernels.presence_contrastive.torch_path import QueryLosses

__all__ = ["presence_contrastive"]


def presence_contrastive(
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: list[tuple[int, int]] | tuple[tuple[int, int], ...],
    logit_scale: Tensor,
    weights_BP: Tensor | None = None,
    loss_weights_BP: Tensor | None = None,
    path: str | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Local sums of InfoNCE per pair and direction: loss_P2, float32 (float64 for float64 inputs).

    For pair p = (i, j) the queries are the local products that have both modalities and the keys are the products of
    the gathered batch that have both. Direction 0 compares features[:, i] with keys[:, j], direction 1 features[:, j]
    with keys[:, i]. A query's loss is logsumexp over keys minus the logit of `positive_B[b]`, its own index (int64)
    in the gathered batch, which must have every modality that the query has; logit = logit_scale * weights_BP[b, p] *
    <f, k>, and `loss_weights_BP[b, p]` multiplies the loss. Presence is bool, True = present; `logit_scale` is a
    scalar tensor. `groups` (int64 [B] and [C], of queries and keys): a key of the query's group is left out, unless it
    is its positive; such calls take the torch path on a GPU too.

    Gradients flow to features, keys, logit_scale and both weights; a pair without queries has loss zero and zero
    gradients. Features and keys share a dtype. `ValueError` names a bad argument.
    """
    pairs = tuple((int(i), int(j)) for i, j in pairs)
    factors = {"logit_scale": logit_scale, "weights_BP": weights_BP, "loss_weights_BP": loss_weights_BP}
    _check(features_BMD, keys_CMD, present_BM, keys_present_CM, positive_B, pairs)
    _check_factors(factors, features_BMD, len(pairs))
    _check_groups(groups, features_BMD, keys_CMD)
    if groups is not None:
        if path == "triton":
            raise ValueError("groups: the Triton kernels do not know them; use path torch or reference")
        path = path or "torch"
    chosen = choose_path("presence_contrastive", features_BMD.device, path)
    arguments = (features_BMD, keys_CMD, present_BM, keys_present_CM, positive_B, pairs)
    if chosen == "reference":
        return presence_contrastive_reference(*arguments, logit_scale, weights_BP, loss_weights_BP, groups)
    wide = torch.float64 if features_BMD.dtype == torch.float64 else torch.float32
    is_query_PB = torch.stack([present_BM[:, i] & present_BM[:, j] for i, j in pairs])
    factor_PB = logit_scale.to(wide).reshape(1, 1).expand(len(pairs), features_BMD.shape[0])
    if weights_BP is not None:
        factor_PB = factor_PB * _of_queries(weights_BP, is_query_PB, wide)
    if chosen == "triton":
        # Imported when first used: a machine without a GPU needs no Triton.
        from m5ds.kernels.presence_contrastive.triton_path import query_losses_triton as query_losses
    else:
        query_losses = partial(QueryLosses.apply, groups)
    loss_P2B: Tensor = query_losses(*arguments, factor_PB[:, None].expand(-1, 2, -1).contiguous())
    if loss_weights_BP is not None:
        loss_P2B = loss_P2B * _of_queries(loss_weights_BP, is_query_PB, wide)[:, None]
    return loss_P2B.sum(2)


def _of_queries(weights_BP: Tensor, is_query_PB: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [P, B], zero where the product is no query of the pair: a weight that nobody computed may be NaN."""
    return torch.where(is_query_PB, weights_BP.to(dtype).t(), 0.0)


def _check(
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: tuple[tuple[int, int], ...],
) -> None:
    if features_BMD.dim() != 3 or not features_BMD.is_floating_point():
        raise ValueError(
            f"features_BMD must be floating [B, M, D], got {features_BMD.dtype} {list(features_BMD.shape)}"
        )
    num_products, num_modalities, _ = features_BMD.shape
    if keys_CMD.dim() != 3 or keys_CMD.shape[1:] != features_BMD.shape[1:]:
        raise ValueError(f"keys_CMD has shape {list(keys_CMD.shape)}, features_BMD {list(features_BMD.shape)}")
    if keys_CMD.dtype != features_BMD.dtype:
        raise ValueError(f"keys_CMD is {keys_CMD.dtype}, features_BMD is {features_BMD.dtype}")
    masks = (("present_BM", present_BM, num_products), ("keys_present_CM", keys_present_CM, keys_CMD.shape[0]))
    for name, mask, rows in masks:
        if mask.dtype != torch.bool or mask.shape != (rows, num_modalities):
            raise ValueError(f"{name} must be bool [{rows}, {num_modalities}], got {mask.dtype} {list(mask.shape)}")
    if positive_B.dtype != torch.int64 or positive_B.shape != (num_products,):
        raise ValueError(f"positive_B must be int64 [{num_products}], got {positive_B.dtype} {list(positive_B.shape)}")
    if not pairs:
        raise ValueError("pairs must name at least one pair of modalities")
    for pair in pairs:
        if pair[0] == pair[1] or not all(0 <= m < num_modalities for m in pair):
            raise ValueError(f"pairs holds {pair}; a pair is two different numbers below {num_modalities}")
    for name, value in (("keys_CMD", keys_CMD), *((name, mask) for name, mask, _ in masks), ("positive_B", positive_B)):
        if value.device != features_BMD.device:
            raise ValueError(f"{name} is on {value.device}, features_BMD on {features_BMD.device}")
    # Reading an accelerator's tensor would wait for it.
    if num_products and positive_B.device.type == "cpu":
        lowest, highest = (int(value) for value in torch.aminmax(positive_B))
        if lowest < 0 or highest >= keys_CMD.shape[0]:
            raise ValueError(f"positive_B holds {lowest} to {highest}, keys_CMD has {keys_CMD.shape[0]} products")


def _check_groups(groups: tuple[Tensor, Tensor] | None, features_BMD: Tensor, keys_CMD: Tensor) -> None:
    if groups is None:
        return
    for name, value, rows in zip(("queries", "keys"), groups, (features_BMD, keys_CMD), strict=True):
        if value.device != features_BMD.device:
            raise ValueError(f"groups of {name} are on {value.device}, features_BMD on {features_BMD.device}")
        if value.dtype != torch.int64 or value.shape != rows.shape[:1]:
            raise ValueError(f"groups of {name} must be int64 [{rows.shape[0]}], got {value.dtype} {list(value.shape)}")


def _check_factors(factors: dict[str, Tensor | None], features_BMD: Tensor, num_pairs: int) -> None:
    for name, value in factors.items():
        if value is None:
            continue
        shape = (features_BMD.shape[0], num_pairs)
        if name == "logit_scale" and value.numel() != 1:
            raise ValueError(f"logit_scale must be a scalar tensor, got shape {list(value.shape)}")
        if name != "logit_scale" and value.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {value.dtype}")
        if value.device != features_BMD.device:
            raise ValueError(f"{name} is on {value.device}, features_BMD on {features_BMD.device}")
