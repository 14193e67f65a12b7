"""One mutant: a piece of one source file and what replaces it."""

import ast
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Edit:
    path: str
    """Of the file, relative to the root."""
    line: int
    start: int
    """Where the replaced piece begins and ends in the file, in bytes."""
    end: int
    new: str
    what: str
    """One line for people."""
    lines: tuple[int, ...]
    """Lines (from 1) whose execution shows the difference. Empty: what runs when the file is imported."""

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def diff(self) -> str:
        before = (ROOT / self.path).read_bytes()
        after = self.apply(before)
        texts = [text.decode().splitlines(keepends=True) for text in (before, after)]
        return "".join(difflib.unified_diff(*texts, f"a/{self.path}", f"b/{self.path}", n=1))


class Source:
    """A parsed file, and edits of it by syntax node."""

    def __init__(self, path: str, data: bytes):
        self.path = path
        self.bytes = data
        self.tree = ast.parse(self.bytes)
        self._line_starts = [0]
        for line in self.bytes.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))

    @classmethod
    def of(cls, path: Path) -> "Source":
        return cls(str(path.relative_to(ROOT)), path.read_bytes())

    def edit(self, node: ast.AST, new: str, what: str, lines: Iterable[int]) -> Edit:
        start = self._line_starts[node.lineno - 1] + node.col_offset
        end = self._line_starts[node.end_lineno - 1] + node.end_col_offset
        return Edit(self.path, node.lineno, start, end, new, what, tuple(lines))

    def is_another_program(self, edit: Edit) -> bool:
        """False where the edit leaves the syntax tree as it is, or no valid program."""
        try:
            changed = ast.parse(edit.apply(self.bytes))
        except SyntaxError:
            return False
        return ast.dump(changed) != ast.dump(self.tree)
