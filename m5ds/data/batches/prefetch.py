"""Work that threads do ahead of who consumes it, in order."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

THREADS = "m5ds-prefetch"
"""What the threads' names begin with."""
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefetched(Generic[Item, Value]):
    """One group of items and what was made of each."""

    items: Sequence[Item]
    values: list[Value]
    wait_seconds: float
    """How long the consumer waited for it."""


def prefetch(
    groups: Iterable[Sequence[Item]], prepare: Callable[[Item], Value], *, ahead: int, num_threads: int
) -> Generator[Prefetched[Item, Value]]:
    """Each group with its items prepared, in order; `ahead` groups are under way beyond the one that is waited for.

    An error of `prepare` is raised here. Leaving the generator, by whatever way, ends its threads.
    """
    left = iter(groups)
    with ThreadPoolExecutor(num_threads, thread_name_prefix=THREADS) as pool:
        under_way: deque[tuple[Sequence[Item], list[Future[Value]]]] = deque()
        try:
            while True:
                for items in islice(left, ahead + 1 - len(under_way)):
                    under_way.append((items, [pool.submit(prepare, item) for item in items]))
                if not under_way:
                    return
                items, futures = under_way.popleft()
                started = time.perf_counter()
                values = [future.result() for future in futures]
                yield Prefetched(items=items, values=values, wait_seconds=time.perf_counter() - started)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
