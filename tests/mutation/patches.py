"""Mutants made by hand: unified diffs, or a table of replacements by text.

A table has one mutant a line, `path: old => new`, where `old` occurs once in the file; or `path: old => new @ context`
where it occurs once after the first occurrence of `context`. Lines that begin with # are remarks; a remark right above
a mutant is its name.
"""

import ast
import re
from pathlib import Path

from mutation.edits import ROOT, Edit
from mutation.sites import lines_at
from mutation.trials import Trial

_ENTRY = re.compile(r"(?P<path>[\w/]+\.py): (?P<old>.+?) => (?P<new>.*?)(?: @ (?P<context>.+))?")
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@")


def read(path: Path) -> list[Trial]:
    text = path.read_text()
    return _diffs(text, path.name) if "\n+++ " in text else _table(text, path)


def _table(text: str, path: Path) -> list[Trial]:
    trials, remark = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            remark = line.lstrip("# ").strip()
            continue
        entry = _ENTRY.fullmatch(line.rstrip())
        if entry is None:
            raise ValueError(f"{path}:{number}: {line!r} is not `path: old => new`")
        try:
            edit = replacement(entry["path"], entry["old"], entry["new"], entry["context"] or "")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        trials.append(Trial((edit,), f"{edit.path}:{edit.line} {remark or edit.what}"))
        remark = ""
    return trials


def replacement(path: str, old: str, new: str, context: str = "") -> Edit:
    """`old` replaced in the file by `new`; ValueError where it does not occur once after the context."""
    text = (ROOT / path).read_text()
    begin = text.find(context)
    if begin < 0:
        raise ValueError(f"{path} does not hold {context!r}")
    start = text.find(old, begin)
    if start < 0 or (not context and text.find(old, start + 1) >= 0):
        raise ValueError(f"{path} holds {old!r} {'not at all' if start < 0 else 'more than once; add @ context'}")
    return _edit(path, text, start, start + len(old), new, f"{old} -> {new}")


def _edit(path: str, text: str, start: int, end: int, new: str, what: str) -> Edit:
    first = text.count("\n", 0, start) + 1
    touched = range(first, text.count("\n", 0, end) + 1 + (not text[:end].endswith("\n")))
    in_bytes = [len(text[:at].encode()) for at in (start, end)]
    lines = lines_at(ast.parse(text), touched)
    return Edit(path, first, *in_bytes, new, what, lines)


def _diffs(text: str, name: str) -> list[Trial]:
    """One mutant a file header (`--- a/path`), with all its hunks."""
    trials = []
    for number, part in enumerate(re.split(r"^--- ", text, flags=re.MULTILINE)[1:]):
        path = re.search(r"^\+\+\+ (?:b/)?(\S+)", part, flags=re.MULTILINE)[1]
        source = (ROOT / path).read_text()
        edits = tuple(_hunk(path, source, hunk) for hunk in re.split(r"^(?=@@ )", part, flags=re.MULTILINE)[1:])
        trials.append(Trial(edits, f"{path}:{edits[0].line} {name}[{number}] {edits[0].what}"))
    return trials


def _hunk(path: str, source: str, hunk: str) -> Edit:
    """The changed lines of a hunk, without the unchanged ones around them."""
    header, *body = hunk.splitlines(keepends=True)
    body = [line for line in body if line[:1] in ("+", "-", " ")]
    changed = [i for i, line in enumerate(body) if line[0] in "+-"]
    middle = body[changed[0] : changed[-1] + 1]
    old = "".join(line[1:] for line in middle if line[0] in " -")
    new = "".join(line[1:] for line in middle if line[0] in " +")
    at = int(_HUNK.match(header)[1]) - 1 + changed[0]
    start = sum(len(line) for line in source.splitlines(keepends=True)[:at])
    if source[start : start + len(old)] != old:
        raise ValueError(f"{path}: the diff does not fit line {at + 1}")
    return _edit(path, source, start, start + len(old), new, " ".join(f"{old.strip()} -> {new.strip()}".split()))
