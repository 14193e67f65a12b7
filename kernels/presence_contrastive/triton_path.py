"""The contrastive kernels as torch operators: launches, shapes for tracing, gradients.

Two custom ops, forward and backward, so that torch.compile and activation checkpointing see one node each. Shapes:
B local products, C gathered products, M modalities, D width, P pairs, E = 2 P directed pairs.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from m5ds.kernels.common.dispatch import interpreting
from m5ds.kernels.common.tiles import architecture
from m5ds.kernels.presence_contrastive import triton_kernels as kernels
from m5ds.kernels.presence_contrastive.configurations import DTYPES, variant
from m5ds.kernels.presence_contrastive.tiles import column_block, tile

LAUNCHED: set[tuple[str, str]] = set()
"""(kernel, variant) of every launch of this process, for tests."""


def query_losses_triton(
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: tuple[tuple[int, int], ...],
    factor_P2B: Tensor,
) -> Tensor:
    """loss_P2B float32, zero for queries that lack a modality of the pair. `ValueError` for float64."""
    if features_BMD.dtype not in DTYPES:
        raise ValueError(f"features_BMD is {features_BMD.dtype}; the Triton path takes float16, bfloat16 and float32")
    flat = [modality for pair in pairs for modality in pair]
    arguments = (features_BMD, keys_CMD, present_BM, keys_present_CM, positive_B, flat, factor_P2B)
    loss_P2B, _, _ = contrastive_forward(*arguments)
    return loss_P2B


@torch.library.custom_op("m5ds::contrastive_forward", mutates_args=())
def contrastive_forward(
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: list[int],
    factor_P2B: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss_P2B, the log-sum-exp lse_P2B in base 2, and rest_P2B, the probability of all keys but the positive; float32.

    `pairs` is flat: i, j, i, j, ...
    """
    loss_P2B, lse_P2B, rest_P2B = (torch.empty_like(factor_P2B) for _ in range(3))
    (num_queries, num_modalities, width), num_keys = features_BMD.shape, keys_CMD.shape[0]
    if num_queries == 0:
        return loss_P2B, lse_P2B, rest_P2B
    query_modality_E, key_modality_E = _directed(tuple(pairs), features_BMD.device)
    key_order_PC, key_count_P = _order(_both(keys_present_CM, query_modality_E, key_modality_E))
    itemsize = features_BMD.element_size()
    block_d = column_block(width, itemsize)
    entry = tile("fwd", architecture(features_BMD.device), itemsize, block_d)
    LAUNCHED.add(("fwd", variant("fwd", features_BMD.dtype, block_d)))
    kernels.contrastive_fwd_kernel[(triton.cdiv(num_queries, entry.block_b), len(pairs))](
        features_BMD.contiguous(),
        keys_CMD.contiguous(),
        present_BM.contiguous().view(torch.uint8),
        positive_B,
        query_modality_E,
        key_modality_E,
        key_order_PC,
        key_count_P,
        factor_P2B.contiguous(),
        lse_P2B,
        rest_P2B,
        loss_P2B,
        num_queries,
        num_keys,
        num_modalities,
        width,
        BLOCK_B=entry.block_b,
        BLOCK_C=entry.block_c,
        BLOCK_K=entry.block_k,
        UPCAST=_upcast(features_BMD),
        num_warps=entry.num_warps,
        num_stages=entry.num_stages,
    )
    return loss_P2B, lse_P2B, rest_P2B


@contrastive_forward.register_fake
def _(
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: list[int],
    factor_P2B: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(factor_P2B), torch.empty_like(factor_P2B), torch.empty_like(factor_P2B)


@torch.library.custom_op("m5ds::contrastive_backward", mutates_args=())
def contrastive_backward(
    grad_P2B: Tensor,
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: list[int],
    factor_P2B: Tensor,
    lse_P2B: Tensor,
    rest_P2B: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to features, keys and factor_P2B, in their dtypes."""
    features_BMD, keys_CMD = features_BMD.contiguous(), keys_CMD.contiguous()
    grad_features, grad_keys = torch.empty_like(features_BMD), torch.empty_like(keys_CMD)
    grad_factor_P2B = torch.empty_like(factor_P2B)
    (num_queries, num_modalities, width), num_keys = features_BMD.shape, keys_CMD.shape[0]
    if num_queries == 0 or num_keys == 0:
        return grad_features.zero_(), grad_keys.zero_(), grad_factor_P2B.zero_()
    grad_P2B, factor_P2B = grad_P2B.contiguous(), factor_P2B.contiguous()
    query_modality_E, key_modality_E = _directed(tuple(pairs), features_BMD.device)
    is_query_PB = _both(present_BM, query_modality_E, key_modality_E)
    query_order_PB, query_count_P = _order(is_query_PB)
    key_order_PC, key_count_P = _order(_both(keys_present_CM, query_modality_E, key_modality_E))
    # Divided by the largest, so that a float16 tile of gradients neither overflows nor vanishes; 0 / tiny stays 0.
    coefficient_P2B = torch.where(is_query_PB[:, None], grad_P2B * factor_P2B, 0.0)
    limit = coefficient_P2B.abs().amax().clamp_min(1e-30)
    coefficient_P2B = coefficient_P2B / limit
    arch, itemsize = architecture(features_BMD.device), features_BMD.element_size()
    block_d = column_block(width, itemsize)
    shared = (num_queries, num_keys, num_modalities, len(pairs), width)
    for kernel, p_present, rows, p_order, p_count, launch in (
        ("bwd_features", present_BM, num_queries, key_order_PC, key_count_P, kernels.contrastive_bwd_features_kernel),
        ("bwd_keys", keys_present_CM, num_keys, query_order_PB, query_count_P, kernels.contrastive_bwd_keys_kernel),
    ):
        entry = tile(kernel, arch, itemsize, block_d)
        LAUNCHED.add((kernel, variant(kernel, features_BMD.dtype, block_d)))
        of_features = kernel == "bwd_features"
        owned = entry.block_b if of_features else entry.block_c
        own = (grad_P2B, coefficient_P2B, limit, grad_features, grad_factor_P2B)
        launch[(triton.cdiv(rows, owned), num_modalities, triton.cdiv(width, block_d))](
            features_BMD,
            keys_CMD,
            p_present.contiguous().view(torch.uint8),
            positive_B,
            query_modality_E,
            key_modality_E,
            p_order,
            p_count,
            factor_P2B,
            lse_P2B,
            rest_P2B,
            *(own if of_features else (coefficient_P2B, limit, grad_keys)),
            *shared,
            BLOCK_B=entry.block_b,
            BLOCK_C=entry.block_c,
            BLOCK_K=entry.block_k,
            BLOCK_D=entry.block_d,
            UPCAST=_upcast(features_BMD),
            num_warps=entry.num_warps,
            num_stages=entry.num_stages,
        )
    return grad_features, grad_keys, grad_factor_P2B


@contrastive_backward.register_fake
def _(
    grad_P2B: Tensor,
    features_BMD: Tensor,
    keys_CMD: Tensor,
    present_BM: Tensor,
    keys_present_CM: Tensor,
    positive_B: Tensor,
    pairs: list[int],
    factor_P2B: Tensor,
    lse_P2B: Tensor,
    rest_P2B: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = (features_BMD.new_empty(features_BMD.shape), keys_CMD.new_empty(keys_CMD.shape))
    return *grads, torch.empty_like(factor_P2B)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, pairs, factor_P2B = inputs
    ctx.save_for_backward(*tensors, factor_P2B, *output[1:])
    ctx.pairs = pairs


def _backward(ctx: Any, grad_P2B: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, factor_P2B, lse_P2B, rest_P2B = ctx.saved_tensors
    grads = contrastive_backward(grad_P2B, *tensors, ctx.pairs, factor_P2B, lse_P2B, rest_P2B)
    grad_features, grad_keys, grad_factor_P2B = grads
    return grad_features, grad_keys, None, None, None, None, grad_factor_P2B


contrastive_forward.register_autograd(_backward, setup_context=_setup_context)


@lru_cache(maxsize=64)
def _directed(pairs: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """int32 [E]: the modality of queries and of keys of every directed pair; on the device once per set of pairs."""
    first, second = pairs[0::2], pairs[1::2]
    query = [modality for pair in zip(first, second, strict=True) for modality in pair]
    key = [modality for pair in zip(second, first, strict=True) for modality in pair]
    return torch.tensor(query, dtype=torch.int32, device=device), torch.tensor(key, dtype=torch.int32, device=device)


def _both(present: Tensor, query_modality_E: Tensor, key_modality_E: Tensor) -> Tensor:
    """bool [P, rows]: the products that have both modalities of each pair."""
    return (present.index_select(1, query_modality_E[0::2]) & present.index_select(1, key_modality_E[0::2])).t()


def _order(both_P: Tensor) -> tuple[Tensor, Tensor]:
    """int32 [P, rows] and [P]: for each pair the products that have both modalities, in order, then the others; and how
    many have them. Sorted, not `nonzero`, so that nothing waits for the device."""
    order = torch.sort((~both_P).to(torch.uint8), dim=1, stable=True).indices
    return order.to(torch.int32).contiguous(), both_P.sum(1, dtype=torch.int32)


def _upcast(value: Tensor) -> bool:
    """The interpreter's bfloat16 arithmetic is wrong (FINDINGS.md); loads are exact, so tiles are widened there."""
    return interpreting() and value.dtype == torch.bfloat16
