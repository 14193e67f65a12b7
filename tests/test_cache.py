import gc
import threading

import pytest

from m5ds.cache import Cache


def test_a_value_is_loaded_once_while_it_is_among_the_last_used():
    cache, loaded = Cache(2), []

    def get(key):
        return cache.get(key, lambda: loaded.append(key) or key * 10)

    assert [get(key) for key in (0, 1, 0, 2, 0, 2, 1)] == [0, 10, 0, 20, 0, 20, 10]
    assert loaded == [0, 1, 2, 1] and len(cache) == 2
    cache.clear()
    assert len(cache) == 0 and get(1) == 10 and loaded[4:] == [1]


def test_none_is_a_value():
    cache, loaded = Cache(1), []
    assert cache.get("a", lambda: loaded.append(1)) is None and cache.get("a", lambda: loaded.append(1)) is None
    assert loaded == [1]


def test_an_error_leaves_nothing_and_the_next_load_tries_again():
    cache = Cache(2)
    cache.get("kept", lambda: 1)

    def fail():
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            cache.get("a", fail)
        assert len(cache) == 1
    assert cache.get("a", lambda: 5) == 5 and cache.get("kept", fail) == 1


@pytest.mark.timeout(30)
def test_threads_that_want_one_value_wait_for_its_one_load_and_others_do_not():
    cache, gate, loaded, found = Cache(4), threading.Event(), [], []

    def load():
        loaded.append(1)
        assert gate.wait(20)
        return "slow"

    threads = [threading.Thread(target=lambda: found.append(cache.get("slow", load))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert cache.get("fast", lambda: "fast") == "fast" and not found
    gate.set()
    for thread in threads:
        thread.join(20)
    assert found == ["slow"] * 4 and loaded == [1]


@pytest.mark.timeout(30)
def test_threads_that_wait_for_a_load_that_fails_get_its_error():
    cache, gate, errors = Cache(4), threading.Event(), []

    def load():
        assert gate.wait(20)
        raise OSError("gone")

    def get():
        try:
            cache.get("a", load)
        except OSError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(20)
    assert errors == ["gone"] * 3 and len(cache) == 0


@pytest.mark.timeout(30)
def test_a_value_that_is_dropped_while_it_loads_still_reaches_who_asked():
    """The next load of the key is a new one: what was dropped must not come back."""
    cache, started, gate, found = Cache(1), threading.Event(), threading.Event(), []

    def load():
        started.set()
        assert gate.wait(20)
        raise OSError("late")

    def get():
        try:
            cache.get("a", load)
        except OSError as error:
            found.append(str(error))

    thread = threading.Thread(target=get)
    thread.start()
    assert started.wait(20)
    cache.get("b", lambda: 1)
    assert cache.get("a", lambda: "new") == "new"
    gate.set()
    thread.join(20)
    assert found == ["late"] and cache.get("a", lambda: "other") == "new"


class Closing:
    def __init__(self, closed, key):
        self.closed, self.key = closed, key

    def __del__(self):
        self.closed.append(self.key)


def test_a_dropped_value_closes_as_soon_as_nobody_uses_it():
    cache, closed = Cache(1), []
    used = cache.get("a", lambda: Closing(closed, "a"))
    cache.get("b", lambda: Closing(closed, "b"))
    assert not closed, "a thread still reads it"
    gc.disable()
    try:
        del used
        assert closed == ["a"]
        cache.clear()
        assert closed == ["a", "b"]
    finally:
        gc.enable()


@pytest.mark.timeout(60)
def test_many_threads_get_right_values_from_a_small_cache():
    cache, wrong = Cache(2), []

    def work(offset):
        for number in range(300):
            key = (number * 7 + offset) % 5
            if cache.get(key, lambda key=key: key * 10) != key * 10:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong and len(cache) <= 2 and not any(thread.is_alive() for thread in threads)
