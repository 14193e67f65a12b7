"""Which product comes at which position: a pure function of (seed, epoch, position) (DESIGN section 3.7).

Chunks (contiguous runs inside a shard) are permuted, then products are permuted inside a window of chunks: reads stay
nearly sequential and the memory needed grows with the number of chunks only. Nothing is walked: any position is found
at once, and the state of a loader is one integer. Random numbers are Philox words keyed by (seed, epoch), sorted.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.cache import Cache
from m5ds.kernels.common import philox

_CHUNKS, _PRODUCTS = 0, 1
_CACHED_EPOCHS, _CACHED_WINDOWS = 2, 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where the product at a position lies, and the epoch that draws it."""

    epoch: int
    shard: int
    index: int


class Order:
    """The order of a split's products; every epoch is an exact permutation. Safe to share among threads."""

    def __init__(
        self, shard_sizes: Sequence[int], seed: int, chunk_size: int, window_chunks: int, shuffle: bool = True
    ) -> None:
        """`shard_sizes`: products of each shard, in the manifest's order. `shuffle=False`: the shards' own order.

        Raises ValueError for a negative size or a chunk_size or window_chunks below 1.
        """
        if chunk_size < 1 or window_chunks < 1:
            raise ValueError(
                f"data.chunk_size and data.window_chunks must be at least 1, got {chunk_size} and {window_chunks}"
            )
        if any(size < 0 for size in shard_sizes):
            raise ValueError(f"shard sizes must not be negative, got {list(shard_sizes)}")
        self.num_products = sum(shard_sizes)
        self._seed = seed
        self._window_chunks = window_chunks
        self._shuffle = shuffle
        chunks = [
            (shard, start, min(chunk_size, size - start))
            for shard, size in enumerate(shard_sizes)
            for start in range(0, size, chunk_size)
        ]
        self._chunk_C3 = torch.tensor(chunks, dtype=torch.int64).reshape(-1, 3)
        self._epochs: Cache[int, tuple[Tensor, Tensor]] = Cache(_CACHED_EPOCHS)
        self._windows: Cache[tuple[int, int], Tensor] = Cache(_CACHED_WINDOWS)

    def at(self, epoch: int, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(shard, index in shard) of the products at `positions` of an epoch, each in [0, num_products)."""
        assert all(0 <= position < self.num_products for position in positions), "position outside the epoch"
        _, window_start_W = self._epoch(epoch)
        position_K = torch.tensor(positions, dtype=torch.int64)
        window_K = torch.searchsorted(window_start_W, position_K, right=True) - 1
        offset_K = position_K - window_start_W[window_K]
        place_K2 = torch.empty(len(position_K), 2, dtype=torch.int64)
        for window in window_K.unique().tolist():
            here_K = window_K == window
            place_K2[here_K] = self._window(epoch, window)[offset_K[here_K]]
        return [(shard, index) for shard, index in place_K2.tolist()]

    def places(self, start: int, count: int) -> list[Place]:
        """The products at positions [start, start + count) of the run, which go on over the ends of epochs."""
        assert self.num_products > 0, "an empty split has no order"
        places: list[Place] = []
        while len(places) < count:
            epoch, position = divmod(start + len(places), self.num_products)
            stop = min(position + count - len(places), self.num_products)
            places += [Place(epoch, *place) for place in self.at(epoch, range(position, stop))]
        return places

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The epoch's chunks [C, 3] in their order and the first position of each window [W + 1]."""

        def compute() -> tuple[Tensor, Tensor]:
            chunk_C3 = self._chunk_C3[self._permutation(epoch, _CHUNKS, 0, len(self._chunk_C3))]
            end_C = chunk_C3[:, 2].cumsum(0)
            last_W = torch.arange(self._window_chunks - 1, len(end_C) + self._window_chunks - 1, self._window_chunks)
            end_W = end_C[last_W.clamp(max=max(len(end_C) - 1, 0))] if len(end_C) else end_C
            return chunk_C3, torch.cat([torch.zeros(1, dtype=torch.int64), end_W])

        return self._epochs.get(epoch, compute)

    def _window(self, epoch: int, window: int) -> Tensor:
        """(shard, index) [K, 2] of a window's products in their order."""

        def compute() -> Tensor:
            chunk_C3 = self._epoch(epoch)[0][window * self._window_chunks : (window + 1) * self._window_chunks]
            products_K2 = torch.cat(
                [
                    torch.stack([torch.full((size,), shard), torch.arange(start, start + size)], dim=1)
                    for shard, start, size in chunk_C3.tolist()
                ]
            )
            return products_K2[self._permutation(epoch, _PRODUCTS, window, len(products_K2))]

        return self._windows.get((epoch, window), compute)

    def _permutation(self, epoch: int, level: int, group: int, count: int) -> Tensor:
        element = torch.arange(count, dtype=torch.int64)
        if not self._shuffle:
            return element
        words = philox.random_words(
            seed=self._seed,
            draw=epoch,
            product=torch.tensor(group, dtype=torch.int64),
            stream=philox.Stream.ORDER,
            element=element,
            index=level,
        )
        # 62 random bits to sort by; equal keys keep their order.
        return torch.argsort((words[0] << 30) | (words[1] >> 2), stable=True)


def deal(costs: Sequence[float], num_slots: int) -> list[list[int]]:
    """Deal products to slots: equal counts and nearly equal cost (longest first to the cheapest slot that has room).

    Returns for each slot the indices into `costs`, ascending. Deterministic. Raises ValueError where they cannot be
    dealt equally.
    """
    if num_slots < 1 or len(costs) % num_slots:
        raise ValueError(
            f"train.global_batch_size {len(costs)} must be a multiple of the {num_slots} micro-batches of a step"
            " (world size x train.accumulation)"
        )
    capacity = len(costs) // num_slots
    slots: list[list[int]] = [[] for _ in range(num_slots)]
    with_room = [(0.0, slot) for slot in range(num_slots)]
    for product in sorted(range(len(costs)), key=lambda product: (-costs[product], product)):
        load, slot = heapq.heappop(with_room)
        slots[slot].append(product)
        if len(slots[slot]) < capacity:
            heapq.heappush(with_room, (load + costs[product], slot))
    return [sorted(slot) for slot in slots]
