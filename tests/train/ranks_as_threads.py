"""Several ranks in one process: threads, and the object collectives of m5ds.train.distributed between them."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from m5ds.train import distributed


class RanksAsThreads:
    """Takes the place of m5ds.train.distributed's functions until the test ends; `run` starts the ranks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
        self._local = threading.local()
        self._meeting = threading.Barrier(world_size, timeout=20)
        self._values: list[bytes] = [b""] * world_size
        for name in ("rank", "world_size", "barrier", "gather_objects", "broadcast_object"):
            monkeypatch.setattr(distributed, name, getattr(self, name))

    def rank(self) -> int:
        return self._local.rank

    def world_size(self) -> int:
        return len(self._values)

    def barrier(self) -> None:
        self._meeting.wait()

    def gather_objects(self, value: Any) -> list[Any]:
        self._values[self.rank()] = pickle.dumps(value)
        self._meeting.wait()
        found = [pickle.loads(item) for item in self._values]
        self._meeting.wait()
        return found

    def broadcast_object(self, value: Any) -> Any:
        return self.gather_objects(value if self.rank() == 0 else None)[0]

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """What `function(rank)` returned, or the exception that it raised, by rank."""
        results: list[Any] = [None] * self.world_size()

        def one(rank: int) -> None:
            self._local.rank = rank
            try:
                results[rank] = function(rank)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world_size())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results
