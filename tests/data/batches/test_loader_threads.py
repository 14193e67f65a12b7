"""The loader's threads: they work ahead, hand on their errors, and never outlive their iterator."""

import gc
import threading
import time
from dataclasses import replace

import pytest
from loader_cases import DATA

from m5ds.data.batches.prefetch import THREADS


class Blocking:
    """A decoder that waits for a gate, and then fails if told to."""

    def __init__(self, decoder, error=None):
        self.gate, self.error, self.decoder = threading.Event(), error, decoder

    def __getattr__(self, name):
        def call(*arguments):
            assert self.gate.wait(30)
            if self.error is not None:
                raise self.error
            return getattr(self.decoder, name)(*arguments)

        return call


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]


def test_an_error_in_a_thread_reaches_the_consumer_and_leaves_no_thread(make, decoder):
    failing = Blocking(decoder, error=RuntimeError("the device fell off"))
    failing.gate.set()
    loader = make(decode=failing, data=replace(DATA, num_threads=3))
    with pytest.raises(RuntimeError, match="the device fell off"):
        next(loader.steps())
    assert not loader_threads()


@pytest.mark.timeout(60)
def test_leaving_early_ends_the_threads(make):
    for step in make(data=replace(DATA, num_threads=3, prefetch_steps=4)).steps():
        assert step.micro_batches
        break
    gc.collect()
    assert not loader_threads()
    loader = make()
    iterator = loader.steps()
    next(iterator)
    loader.close()
    assert not loader_threads()
    with pytest.raises(StopIteration):
        next(iterator)


def test_waiting_is_measured_and_work_is_done_ahead(make, decoder):
    slow = Blocking(decoder)
    loader = make(decode=slow, data=replace(DATA, prefetch_steps=2))
    threading.Timer(0.3, slow.gate.set).start()
    iterator = loader.steps(num_steps=3)
    assert next(iterator).wait_seconds > 0.2
    deadline = time.monotonic() + 30
    while len(loader._plans) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    assert next(iterator).wait_seconds < 0.2
