"""Every mutant of every file of m5ds/, in a fixed order."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mutation import exclusions, operators
from mutation.edits import ROOT, Edit, Source


def files(prefixes: list[str]) -> list[Path]:
    """The files of m5ds/ whose path begins with one of the prefixes (all, where there are none)."""
    found = []
    for path in sorted((ROOT / "m5ds").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if any(name.startswith(excluded) for excluded in exclusions.FILES):
            continue
        if not prefixes or any(name.startswith(prefix) for prefix in prefixes):
            found.append(path)
    return found


_PLACE = "M5DS_HERE"


@dataclass(frozen=True)
class Site:
    """A place and what can be done there; the text of the mutant is made when it is wanted."""

    source: Source
    node: ast.AST
    make: Callable[[], str]
    what: str
    lines: tuple[int, ...]

    def edit(self) -> Edit | None:
        """None where the change gives no other valid program."""
        try:
            new = self.make()
        except ValueError:  # an f-string that cannot be written without a backslash, before Python 3.12
            return None
        edit = self.source.edit(self.node, new, f"{self.what} -> `{short(new)}`", self.lines)
        return edit if self.source.is_another_program(edit) else None


def sites(source: Source) -> Iterator[Site]:
    excluded = _excluded_lines(source)
    for node, lines in _visit(source.tree, ()):
        if getattr(node, "lineno", 0) in excluded:
            continue
        if isinstance(node, ast.JoinedStr):
            # A piece of an f-string has no place of its own before Python 3.12: the whole string is replaced.
            for make, what in _inside(node):
                yield Site(source, node, make, what, lines)
            continue
        for make, what in _changes(node):
            yield Site(source, node, make, f"{what} `{short(node)}`", lines)
        if (
            isinstance(node, ast.If | ast.While)
            and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp)
            and "test" not in exclusions.skipped_fields(node)
        ):
            test = node.test
            make = operators.changed(test, lambda other: other)
            yield Site(source, test, lambda make=make: f"(not {make()})", f"negate condition `{short(test)}`", lines)


def _excluded_lines(source: Source) -> set[int]:
    functions = [node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef)]
    return {
        line
        for node in functions
        if (source.path, node.name) in exclusions.FUNCTIONS
        for line in range(node.lineno, node.end_lineno + 1)
    }


def _changes(node: ast.AST) -> Iterator[operators.Change]:
    functions = operators.STATEMENTS if isinstance(node, ast.stmt) else operators.EXPRESSIONS
    for function in functions:
        for make, what in function(node):
            if not exclusions.is_excluded(node, what):
                yield make, what


def _inside(string: ast.JoinedStr) -> Iterator[operators.Change]:
    """The whole f-string with one change in one of its expressions."""
    for node, _ in _visit(string, ()):
        if isinstance(node, ast.JoinedStr):
            continue
        whole = operators.changed(string, lambda other, node=node: _put(string, other, node))
        for make, what in _changes(node):
            yield lambda whole=whole, make=make: whole().replace(_PLACE, make()), f"{what} `{short(node)}` in a string"


def _put(original: ast.AST, other: ast.AST, node: ast.AST) -> None:
    """In the copy `other` of `original`, a name in the place of `node`."""
    for mine, theirs in zip(ast.walk(original), ast.walk(other), strict=True):
        for name, value in ast.iter_fields(mine):
            if value is node:
                setattr(theirs, name, ast.Name(_PLACE))
            elif isinstance(value, list) and any(item is node for item in value):
                getattr(theirs, name)[next(i for i, item in enumerate(value) if item is node)] = ast.Name(_PLACE)


def short(piece: ast.AST | str) -> str:
    text = " ".join((piece if isinstance(piece, str) else ast.unparse(piece)).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _visit(node: ast.AST, lines: tuple[int, ...]) -> Iterator[tuple[ast.AST, tuple[int, ...]]]:
    """(node, lines whose execution runs it) below `node`, without what is excluded."""
    for name, value in ast.iter_fields(node):
        if name in exclusions.skipped_fields(node):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            inner = _lines(node, name, child, lines)
            yield child, inner
            # What a string holds is changed together with the string; see _edits.
            if not isinstance(child, ast.JoinedStr) or isinstance(node, ast.JoinedStr):
                yield from _visit(child, inner)


def _lines(parent: ast.AST, name: str, child: ast.AST, lines: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return ()
    if isinstance(child, ast.arguments) and not isinstance(parent, ast.Lambda):
        # The default of an argument shows wherever the function runs.
        return tuple(range(parent.body[0].lineno, parent.end_lineno + 1))
    if isinstance(parent, ast.Module | ast.ClassDef) and isinstance(child, ast.stmt):
        return ()
    if isinstance(child, ast.stmt):
        last = child.end_lineno if not hasattr(child, "body") else child.body[0].lineno - 1
        return tuple(range(child.lineno, max(last, child.lineno) + 1))
    return lines


def lines_at(tree: ast.Module, touched: range) -> tuple[int, ...]:
    """As `Edit.lines` for text on these lines: of the innermost statements there; empty outside functions."""
    found = [lines for node, lines in _visit(tree, ()) if getattr(node, "lineno", -1) in touched and lines]
    return min(found, key=len) if found else ()
