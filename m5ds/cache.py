"""A cache of what was used last, shared among threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """The `capacity` values that were asked for last.

    A value is loaded once, by the first thread that asks for it; others that want it wait, those that want another do
    not. A dropped value lives on while a thread still uses it, so a value that holds a file closes it in `__del__`.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1, capacity
        self._capacity = capacity
        self._lock = threading.Lock()
        self._futures: OrderedDict[Key, Future[Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._futures)

    def get(self, key: Key, load: Callable[[], Value]) -> Value:
        """The key's value, loaded where it is not there. A load that fails leaves nothing: the next one tries again."""
        with self._lock:
            future = self._futures.get(key)
            loads = future is None
            if future is None:
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
            while len(self._futures) > self._capacity:
                self._futures.popitem(last=False)
        if loads:
            try:
                future.set_result(load())
            except BaseException as error:
                self._forget(key, future)
                future.set_exception(error)
                raise
        return future.result()

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._futures.clear()

    def _forget(self, key: Key, future: Future[Value]) -> None:
        with self._lock:
            if self._futures.get(key) is future:
                del self._futures[key]
