"""What every command-line program shares: an expected error is one line on stderr and exit code 2, no traceback."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit with what it returns (None: 0).

    `ValueError` (with its subclasses: ConfigError, CatalogueError, CorruptShardError, ...) and `OSError` are the user's
    to mend: printed as `error: ...` on one line, exit code 2. Anything else is a defect of ours: its traceback stays.
    """
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `tool | head` closed the pipe; without this the interpreter complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_USER_ERROR)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def one_line(error: BaseException) -> str:
    """The error's message with all line breaks and runs of blanks folded into single blanks."""
    return " ".join(str(error).split()) or type(error).__name__
