"""A split's embeddings: in memory for the tasks, or as resumable Parquet shards (tools/embed.py).

Products of one shard file always share the same batches, so the vectors do not depend on the number of ranks.
Shape letters: B products, W width of a vector.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from m5ds.batch import Batch
from m5ds.downstream.embed.embeddings import EmbeddingInfo, EmbeddingSet, start_writing, write_shard
from m5ds.downstream.embed.evaluation_data import EvaluationData
from m5ds.downstream.embed.features import FeatureOptions, check_states, encode, vector_width
from m5ds.downstream.embed.pretrained import Pretrained
from m5ds.train import distributed

SHARD_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Request:
    """One embedding of every product: which features, of which version of the batch."""

    options: FeatureOptions
    variant: Callable[[Batch], Batch] | None = None
    """What happens to each batch first: modalities lost, pairs shuffled (m5ds/downstream/embed/presence.py)."""


def embedding_info(
    pretrained: Pretrained, data: EvaluationData, options: FeatureOptions, shard_size: int = SHARD_SIZE
) -> EmbeddingInfo:
    """What embeddings.json says. `ValueError` for a modality or state that the model lacks."""
    check_states(pretrained.model, options, pretrained.head)
    return EmbeddingInfo(
        model=pretrained.fingerprint,
        data=data.manifest.hash,
        split=data.split,
        model_modalities=pretrained.model.names,
        modalities=options.modalities,
        states=options.states,
        operation=options.operation,
        normalized=options.normalized,
        width=vector_width(pretrained.model, options, pretrained.head),
        num_products=data.num_products,
        shard_size=shard_size,
    )


def device_of_rank() -> torch.device:
    """The accelerator of this rank, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def encode_range(
    pretrained: Pretrained,
    data: EvaluationData,
    requests: Sequence[Request],
    infos: Sequence[EmbeddingInfo],
    start: int,
    stop: int,
) -> list[EmbeddingSet]:
    """The products of positions [start, stop) under each request. Each batch is decoded once."""
    device = device_of_rank()
    model: Any = pretrained.model
    model = model.to(device)
    head = None if pretrained.head is None else pretrained.head.to(device)
    vectors: list[list[np.ndarray]] = [[] for _ in requests]
    presents: list[list[np.ndarray]] = [[] for _ in requests]
    ids, labels, groups = [], [], []
    for item in data.batches(start, stop):
        ids += item.batch.ids
        groups += item.group
        labels.append(item.batch.label_B.numpy())
        for number, request in enumerate(requests):
            batch = item.batch if request.variant is None else request.variant(item.batch)
            vectors[number].append(encode(model, batch.to(device), request.options, head).numpy())
            presents[number].append(batch.present_BM.numpy())
    return [
        EmbeddingSet(
            info=info,
            ids=tuple(ids),
            vector_ND=np.concatenate(vectors[number]),
            label_N=np.concatenate(labels),
            present_NM=np.concatenate(presents[number]),
            group=tuple(groups),
        )
        for number, info in enumerate(infos)
    ]


def _ranges(num_products: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, num_products)) for start in range(0, num_products, size)]


def encode_split(
    pretrained: Pretrained, data: EvaluationData, requests: Sequence[Request], *, progress: str = "embed"
) -> list[EmbeddingSet] | None:
    """The whole split under each request, on rank 0; None on other ranks. Collective: the ranks share the work."""
    infos = [embedding_info(pretrained, data, request.options) for request in requests]
    world_size, rank = distributed.world_size(), distributed.rank()
    size = max(1, min(SHARD_SIZE, 4 * data.batch_size))
    parts: list[tuple[int, list[EmbeddingSet]]] = []
    mine = _ranges(data.num_products, size)[rank::world_size]
    with distributed.stop_together():
        for start, stop in _with_bar(mine, progress, sum(stop - start for start, stop in mine)):
            parts.append((start, encode_range(pretrained, data, requests, infos, start, stop)))
    gathered = distributed.gather_objects(parts)
    if rank:
        return None
    ordered = [sets for _, sets in sorted((part for parts in gathered for part in parts), key=lambda part: part[0])]
    return [_joined([sets[number] for sets in ordered], info) for number, info in enumerate(infos)]


def _joined(parts: list[EmbeddingSet], info: EmbeddingInfo) -> EmbeddingSet:
    return EmbeddingSet(
        info=info,
        ids=tuple(name for part in parts for name in part.ids),
        vector_ND=np.concatenate([part.vector_ND for part in parts]),
        label_N=np.concatenate([part.label_N for part in parts]),
        present_NM=np.concatenate([part.present_NM for part in parts]),
        group=tuple(name for part in parts for name in part.group),
    )


def write_embeddings(
    pretrained: Pretrained, data: EvaluationData, options: FeatureOptions, directory: Path, shard_size: int = SHARD_SIZE
) -> int:
    """Write the shards of the split that the folder lacks; returns how many this run wrote. Collective.

    `ValueError` where the folder holds embeddings of something else.
    """
    info = embedding_info(pretrained, data, options, shard_size)
    pending: list[int] = []
    with distributed.stop_together():
        if distributed.rank() == 0:
            pending = start_writing(directory, info)
    pending = distributed.broadcast_object(pending)
    mine = pending[distributed.rank() :: distributed.world_size()]
    ranges = [(n * shard_size, min((n + 1) * shard_size, info.num_products)) for n in mine]
    with distributed.stop_together():
        for start, stop in _with_bar(ranges, "embed", sum(stop - start for start, stop in ranges)):
            part = encode_range(pretrained, data, [Request(options=options)], [info], start, stop)[0]
            write_shard(directory, start // shard_size, part)
    distributed.barrier()
    return len(pending)


def _with_bar(ranges: list[tuple[int, int]], name: str, total: int) -> Iterator[tuple[int, int]]:
    with tqdm(total=total, desc=name, unit="product", disable=distributed.rank() > 0, mininterval=1.0) as bar:
        for start, stop in ranges:
            yield start, stop
            bar.update(stop - start)


def with_policy(pretrained: Pretrained, absent: Literal["drop", "token", "zeros"]) -> Pretrained:
    """The same weights under another policy for absent modalities, for comparison side by side.

    The model that was given stays as it is: the one returned shares its parameters and modules, not its `spec`.
    `ValueError` for `token` on a model that was trained without its tokens.
    """
    check_policy(pretrained, absent)
    model = copy.copy(pretrained.model)
    model.spec = dataclasses.replace(pretrained.model.spec, absent=absent)
    return dataclasses.replace(pretrained, model=model)


def check_policy(pretrained: Pretrained, absent: str) -> None:
    """`ValueError` where the model's weights cannot follow the policy, whichever it follows at the moment."""
    if absent == "token" and not hasattr(pretrained.model, "absent"):
        raise ValueError(
            "robustness.policies: token needs a model that was trained with it; leave it out or pretrain with"
            " model.absent=token"
        )
