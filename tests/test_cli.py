import subprocess
import sys

import pytest

from m5ds.cli import one_line, run_tool


def code_of(main) -> int:
    with pytest.raises(SystemExit) as stop:
        run_tool(main)
    return stop.value.code


@pytest.mark.parametrize(
    "error", [ValueError("items.jsonl:3: bad\n  twice"), FileNotFoundError(2, "No such file", "x")]
)
def test_an_expected_error_is_one_line_and_exit_code_2(error, capsys):
    def main():
        raise error

    assert code_of(main) == 2
    output, message = capsys.readouterr()
    assert output == "" and message.startswith("error: ") and message.count("\n") == 1


def test_the_returned_code_is_the_exit_code():
    assert (code_of(lambda: None), code_of(lambda: 0), code_of(lambda: 2)) == (0, 0, 2)


def test_a_defect_of_ours_keeps_its_traceback():
    def main():
        raise AssertionError("ours")

    with pytest.raises(AssertionError):
        run_tool(main)


def test_interruption_is_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    assert code_of(main) == 130 and "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly():
    program = (
        "from m5ds.cli import run_tool\nrun_tool(lambda: [print('x' * 1000, flush=True) for _ in range(5000)] and 0)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 2


def test_a_message_is_folded_into_one_line_and_an_empty_one_is_the_errors_name():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError(" ")) == "ValueError"
