"""Collectives of the training loop. Everything here also works in a single process without a process group.

Shape letters: B products of this rank, G products of all ranks, M modalities, E features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m5ds.cli import one_line


class RankError(ValueError):
    """A user's error that one rank met; raised on every rank with that rank's message, so that all stop together."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def collective_device() -> torch.device:
    """Where small tensors must live for the backend in use."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def sum_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The values summed over ranks, in one all-reduce of float64 (counts stay exact below 2**53).

    Every rank must pass the same keys in the same order. A value that is not finite on one rank is not finite on all.
    """
    if world_size() == 1 or not values:
        return dict(values)
    flat = torch.tensor(list(values.values()), dtype=torch.float64, device=collective_device())
    dist.all_reduce(flat)
    return dict(zip(values, flat.tolist(), strict=True))


def gather_objects(value: Any) -> list[Any]:
    """Each rank's picklable value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_to_first(value: Any) -> list[Any] | None:
    """Each rank's picklable value in rank order on rank 0; None on the others."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=collective_device())
    return box[0]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextmanager
def stop_together() -> Iterator[None]:
    """A `with` block without collectives in which any rank may fail: then every rank raises.

    A ValueError or OSError of any rank becomes a RankError on the others; the failing rank raises its own. Other
    exceptions are bugs: they leave at once, and the launcher ends the job.
    """
    failure: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    messages = gather_objects(None if failure is None else one_line(failure))
    if failure is not None:
        raise failure
    raise_first(messages)


def raise_first(messages: list[str | None]) -> None:
    """Raise the lowest rank's message, if there is one."""
    for source, message in enumerate(messages):
        if message is not None:
            raise RankError(message if source == 0 else f"rank {source}: {message}")


class _GatherRows(torch.autograd.Function):
    """All ranks' rows; the backward sums every rank's gradient of them and takes the own slice.

    With "each rank evaluates only its local rows against all columns" this gives exactly the gradients of one process
    (FINDINGS.md, "Gradients equal to one process").
    """

    @staticmethod
    def forward(ctx: Any, rows_BF: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows_BF.new_zeros((max(sizes), rows_BF.shape[1]))
        padded[: rows_BF.shape[0]] = rows_BF
        gathered = padded.new_empty((len(sizes) * padded.shape[0], padded.shape[1]))
        dist.all_gather_into_tensor(gathered, padded)
        parts = gathered.view(len(sizes), *padded.shape)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad_GF: Tensor) -> tuple[Tensor, None]:
        grad_GF = grad_GF.contiguous()
        dist.all_reduce(grad_GF)
        start = sum(ctx.sizes[: dist.get_rank()])
        return grad_GF[start : start + ctx.sizes[dist.get_rank()]], None


class FeatureGather:
    """The cross-rank gather of contrastive features, with gradient (m5ds.model.objectives.pool.Gather)."""

    def __init__(self, sizes: list[int]) -> None:
        """`sizes[r]` is rank r's number of products."""
        self._sizes = sizes

    def __call__(self, features_BMR: Tensor, present_BM: Tensor) -> tuple[Tensor, Tensor, int]:
        """All ranks' features_GMR (any float type), present_GM (bool, on the features' device), the own row offset.

        Presence travels as one more column, so that there is one collective.
        """
        sizes = self._sizes
        num_products, num_modalities, num_features = features_BMR.shape
        assert num_products == sizes[rank()], f"{num_products} products on rank {rank()}, announced {sizes}"
        presence = present_BM.to(features_BMR)
        rows_BF = torch.cat([features_BMR.flatten(1), presence], dim=1)
        all_GF = _GatherRows.apply(rows_BF, sizes)
        features_GMR = all_GF[:, :-num_modalities].unflatten(1, (num_modalities, num_features))
        return features_GMR, all_GF[:, -num_modalities:].bool(), sum(sizes[: rank()])

    def integers(self, values_B: Tensor) -> Tensor:
        """int64 [G] of all ranks' int64 [B], on the same device."""
        padded = values_B.new_zeros(max(self._sizes))
        padded[: len(values_B)] = values_B
        gathered = padded.new_empty(len(self._sizes) * len(padded))
        dist.all_gather_into_tensor(gathered, padded)
        parts = gathered.view(len(self._sizes), len(padded))
        return torch.cat([part[:size] for part, size in zip(parts, self._sizes, strict=True)])


def feature_gather(sizes: list[int]) -> FeatureGather | None:
    """The gather of contrastive features where rank r has `sizes[r]` products; None on one rank."""
    return None if world_size() == 1 else FeatureGather(sizes)
