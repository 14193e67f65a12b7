import threading
import time

import pytest

from m5ds.data.batches.prefetch import THREADS, prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_groups_come_in_order_with_what_was_made_of_each_item(ahead, num_threads):
    def prepare(item):
        time.sleep(0.002 * (item % 3))
        return -item

    groups = [[0, 1, 2], [3], [], [4, 5]]
    found = list(prefetch(groups, prepare, ahead=ahead, num_threads=num_threads))
    assert [one.items for one in found] == groups
    assert [one.values for one in found] == [[0, -1, -2], [-3], [], [-4, -5]]
    assert not threads()


def test_nothing_to_do_ends_at_once():
    assert list(prefetch([], str, ahead=3, num_threads=2)) == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_groups_are_taken_than_are_waited_for_and_ahead(ahead):
    taken = []

    def groups():
        for number in range(9):
            taken.append(number)
            yield [number]

    made = prefetch(groups(), str, ahead=ahead, num_threads=1)
    assert taken == []
    for number in range(3):
        assert next(made).values == [str(number)] and len(taken) == number + 1 + ahead
    made.close()


@pytest.mark.timeout(30)
def test_work_is_done_while_the_consumer_works_and_its_wait_is_measured():
    gate, done = threading.Event(), threading.Event()

    def prepare(item):
        assert gate.wait(20)
        if item == 1:
            done.set()
        return item

    threading.Timer(0.2, gate.set).start()
    made = prefetch([[0], [1]], prepare, ahead=1, num_threads=2)
    assert next(made).wait_seconds > 0.1
    assert done.wait(20), "the second was prepared before it was asked for"
    assert next(made).wait_seconds < 0.1
    made.close()


@pytest.mark.timeout(30)
def test_an_error_reaches_the_consumer_in_its_turn_and_leaves_no_thread():
    def prepare(item):
        if item == 1:
            raise OSError("gone")
        return item

    made = prefetch([[0], [1], [2]], prepare, ahead=2, num_threads=2)
    assert next(made).values == [0]
    with pytest.raises(OSError, match="gone"):
        next(made)
    assert not threads()


@pytest.mark.timeout(30)
def test_leaving_early_cancels_what_has_not_begun():
    begun = []

    def prepare(item):
        begun.append(item)
        time.sleep(0.2 if item else 0)

    made = prefetch([[number] for number in range(50)], prepare, ahead=49, num_threads=1)
    next(made)
    made.close()
    assert len(begun) < 5 and not threads()
