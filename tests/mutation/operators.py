"""What is done to a syntax node: functions yield (maker of the source that replaces the node, what it is)."""

import ast
import copy
from collections.abc import Callable, Iterator

Change = tuple[Callable[[], str], str]

BINARY: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
NEGATED: dict[type, type] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_BOUNDARY: dict[type, type] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_OPPOSITE = {
    "min": "max",
    "any": "all",
    "minimum": "maximum",
    "amin": "amax",
    "argmin": "argmax",
    "floor": "ceil",
    "startswith": "endswith",
    "append": "extend",
    "intersection": "union",
    "bisect_left": "bisect_right",
    "mean": "sum",
    "zeros": "ones",
    "zeros_like": "ones_like",
}
_OPPOSITE |= {new: old for old, new in _OPPOSITE.items()}


def changed(node: ast.AST, change: Callable[[ast.AST], object]) -> Callable[[], str]:
    """The node's source after `change` on a copy of it, in brackets so that it stays one operand."""

    def make() -> str:
        other = copy.deepcopy(node)
        change(other)
        text = ast.unparse(ast.fix_missing_locations(other))
        return text if isinstance(node, ast.stmt) else f"({text})"

    return make


def _source(node: ast.AST) -> Callable[[], str]:
    return lambda: f"({ast.unparse(node)})"


def _text(new: str) -> Callable[[], str]:
    return lambda: new


def _set(name: str, value: object) -> Callable[[ast.AST], object]:
    return lambda node: setattr(node, name, value)


def swap_operator(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in BINARY:
        yield changed(node, _set("op", BINARY[type(node.op)]())), "swap operator of"


def negate_comparison(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in NEGATED:
        ops = [NEGATED[type(node.ops[0])](), *node.ops[1:]]
        yield changed(node, _set("ops", ops)), "swap comparison of"


def move_boundary(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in _BOUNDARY:
                ops = [*node.ops[:i], _BOUNDARY[type(op)](), *node.ops[i + 1 :]]
                yield changed(node, _set("ops", ops)), "move boundary of"


def swap_boolean(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed(node, _set("op", other)), "swap and/or of"
        for i in range(len(node.values)):
            rest = [*node.values[:i], *node.values[i + 1 :]]
            text = changed(node, _set("values", rest)) if len(rest) > 1 else _source(rest[0])
            yield text, f"drop operand {i + 1} of"


def drop_unary(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.UnaryOp):
        yield _source(node.operand), "drop sign of"


def negate_condition(node: ast.AST) -> Iterator[Change]:
    """Comparisons and `not` have their own negation."""
    if isinstance(node, ast.IfExp) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield changed(node, _set("test", ast.UnaryOp(ast.Not(), node.test))), "negate condition of"


def drop_filter(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        for i, generator in enumerate(node.generators):
            for j in range(len(generator.ifs)):
                yield changed(node, lambda other, i=i, j=j: other.generators[i].ifs.pop(j)), f"drop filter {j + 1} of"


def change_constant(node: ast.AST) -> Iterator[Change]:
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield _text(repr(not value)), "change"
    elif isinstance(value, int):
        yield _text(repr(value + 1)), "change"
        yield _text(repr(value - 1) if value else "(-1)"), "change"
    elif isinstance(value, float):
        yield _text(repr(value * 2 if value else 1.0)), "change"


def change_call(node: ast.AST) -> Iterator[Change]:
    """Two neighbouring arguments swapped, or one named argument left out."""
    if not isinstance(node, ast.Call):
        return
    for i in range(len(node.args) - 1):
        pair = node.args[i : i + 2]
        if not any(isinstance(a, ast.Starred) for a in pair) and ast.dump(pair[0]) != ast.dump(pair[1]):
            args = [*node.args[:i], pair[1], pair[0], *node.args[i + 2 :]]
            yield changed(node, _set("args", args)), f"swap arguments {i + 1} and {i + 2} of"
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            rest = [*node.keywords[:i], *node.keywords[i + 1 :]]
            yield changed(node, _set("keywords", rest)), f"drop argument {keyword.arg} of"


def opposite_function(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in _OPPOSITE:
            field = "id" if isinstance(node.func, ast.Name) else "attr"
            yield changed(node, lambda other: setattr(other.func, field, _OPPOSITE[name])), f"{_OPPOSITE[name]} for"


def move_slice(node: ast.AST) -> Iterator[Change]:
    """A bound that is no constant, one further; constants change by themselves."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        for name in ("lower", "upper"):
            bound = getattr(node.slice, name)
            if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):
                further = ast.BinOp(bound, ast.Add(), ast.Constant(1))
                yield changed(node, lambda o, n=name, f=further: setattr(o.slice, n, f)), f"move {name} bound of"


EXPRESSIONS = (
    swap_operator,
    negate_comparison,
    move_boundary,
    swap_boolean,
    drop_unary,
    negate_condition,
    drop_filter,
    change_constant,
    change_call,
    opposite_function,
    move_slice,
)


def is_call(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)


def delete(statement: ast.stmt) -> Iterator[Change]:
    """Assignments, calls, raises, jumps and bare returns."""
    simple = ast.Assign | ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete
    bare_return = isinstance(statement, ast.Return) and statement.value is None
    if isinstance(statement, simple) or is_call(statement) or bare_return:
        yield _text("pass"), "delete"


STATEMENTS = (delete, swap_operator)
