"""All that is not mutated, each with its reason. What is not here is mutated, however hard it is to test."""

import ast

FILES = {
    "m5ds/downstream/report/plots.py": "how figures look: sizes, colours, places",
}
"""File or folder: why nothing in it is mutated."""
FUNCTIONS = {
    ("m5ds/data/shards/describe.py", "plots"): "how figures look, as above; the tables beside them are tested",
}
"""(file, function): why nothing in it is mutated."""

_MESSAGE_ARGUMENTS = {"help", "metavar", "description", "epilog", "prog", "formatter_class", "usage"}
_COMMUTATIVE = {"min", "max", "minimum", "maximum", "gcd", "equal", "array_equal", "transpose", "swapaxes"}
"""Functions of two arguments whose order means nothing."""
_PRINTING = {"print", "warn", "add_argument_group"}


def skipped_fields(node: ast.AST) -> set[str]:
    """Fields of the node below which nothing is mutated."""
    # Types: nothing at run time reads them but pydantic, which rejects what is not a type.
    skipped = {"annotation", "returns", "type_params"}
    # Decorators: `@dataclass(frozen=True)`, `@lru_cache(8)` say how, not what.
    skipped |= {"decorator_list"}
    if isinstance(node, ast.Raise | ast.ExceptHandler):
        # The words of an error, and which errors are caught. That it is raised is mutated.
        skipped |= {"exc", "cause", "type"}
    if isinstance(node, ast.Assert):
        # An invariant of ours: no input makes it false, so a weaker one looks the same.
        skipped |= {"test", "msg"}
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        skipped |= {"test", "body"}
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__slots__"):
        skipped |= {"value"}
    if isinstance(node, ast.keyword) and node.arg in _MESSAGE_ARGUMENTS:
        skipped |= {"value"}
    if called(node) in _PRINTING:
        skipped |= {"args", "keywords"}
    if isinstance(node, ast.Call) and called(node) == "zip":
        # zip(strict=True) is an assertion.
        skipped |= {"keywords"}
    if isinstance(node, ast.FormattedValue):
        # Digits after the point and the like.
        skipped |= {"format_spec"}
    return skipped


def is_excluded(node: ast.AST, what: str) -> bool:
    """Single mutants that are no change of behaviour, or one that nothing can show."""
    if called(node) in _PRINTING:
        return True
    if isinstance(node, ast.Call) and what.startswith("drop argument "):
        name = what.split()[2]
        # zip(strict=True) is an assertion; help= and the like are words.
        return name in _MESSAGE_ARGUMENTS or name == "strict"
    if what.startswith("swap arguments ") and called(node) in _COMMUTATIVE:
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _is_type(node.left) or _is_type(node.right)
    if isinstance(node, ast.Expr):
        return called(node.value) in _PRINTING
    return False


def called(node: ast.AST) -> str:
    """Name of the function or method that a call calls."""
    return getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""


def _is_type(node: ast.AST) -> bool:
    """`A | None` is a union of types where a side is a class or None: `&` in its place cannot even be imported."""
    if isinstance(node, ast.Constant):
        return node.value is None
    name = getattr(node, "attr", getattr(node, "id", ""))
    return name in ("int", "str", "float", "bool", "bytes", "list", "dict", "tuple", "set") or (
        name[:1].isupper() and not name.isupper()
    )
