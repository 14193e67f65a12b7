"""Files of one JSON object a line that a killed run may leave torn at the end."""

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of the file, none without a file. A torn last line is dropped, another bad one a ValueError."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is not JSON ({error}); move the file away") from error
    return found
