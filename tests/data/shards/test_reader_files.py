"""Files below the reader: when they are read again, and when they are closed."""

import pytest

from m5ds.data.shards import reader as reader_module

FIRST_PAUSE, RETRIES = reader_module._FIRST_PAUSE_SECONDS, reader_module._RETRIES


def test_by_default_a_failing_read_is_given_up_after_less_than_two_seconds():
    """0.2, 0.4 and 0.8 s between four attempts: long enough for a hiccup, short enough to be noticed."""
    assert sum(FIRST_PAUSE * 2**attempt for attempt in range(RETRIES)) == pytest.approx(1.4)
    assert RETRIES == 3


@pytest.mark.parametrize("error", [FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError])
def test_errors_that_do_not_pass_are_raised_at_once(error):
    calls = []

    def fail():
        calls.append(1)
        raise error

    with pytest.raises(error):
        reader_module._retried(fail)
    assert calls == [1]


def test_a_file_that_nobody_holds_is_closed(tmp_path, monkeypatch):
    path = tmp_path / "000000.tar"
    path.write_bytes(bytes(1000))
    closed = []
    os_close = reader_module.os.close
    monkeypatch.setattr(reader_module.os, "close", lambda file: closed.append(file) or os_close(file))
    file = reader_module._RangedFile(str(path))
    assert len(file.read(0, 600)) == 600 and file.read(3, 0) == b""
    file.close()
    file.close()
    assert len(closed) == 1
    del file
    assert len(closed) == 1
    other = reader_module._RangedFile(str(path))
    del other
    assert len(closed) == 2
