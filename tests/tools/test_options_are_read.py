"""Every option of every command line is read somewhere: a flag that does nothing lies to its user."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SET_BY_OTHERS = {"local_rank"}
"""Passed by launchers to every rank; PyTorch's and DeepSpeed's environment variables say the same."""


DYNAMIC = "*"
"""An option whose name is put together when it runs, as `--{name}` of each modality."""


def attribute_of(call: ast.Call) -> str:
    """The attribute that argparse stores an argument under."""
    for keyword in call.keywords:
        if keyword.arg == "dest":
            return ast.literal_eval(keyword.value)
    if any(isinstance(argument, ast.JoinedStr) for argument in call.args):
        return DYNAMIC
    names = [ast.literal_eval(argument) for argument in call.args]
    long = next((name for name in names if name.startswith("--")), names[0])
    return long.lstrip("-").replace("-", "_")


def options(tree: ast.Module) -> set[str]:
    return {
        attribute_of(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    }


def read_attributes(tree: ast.Module) -> set[str]:
    """`arguments.NAME`, `parser.parse_args().NAME`, `"--NAME" in sys.argv`, and `getattr(arguments, name)`."""
    read = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            holder = node.value.func if isinstance(node.value, ast.Call) else node.value
            if ast.unparse(holder).split(".")[-1] in ("arguments", "args", "options", "parse_args"):
                read.add(node.attr)
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "sys.argv":
            read.add(ast.literal_eval(node.left).lstrip("-").replace("-", "_"))
        elif isinstance(node, ast.Call) and ast.unparse(node).startswith("getattr(arguments, "):
            read.add(DYNAMIC)
    return read


def files() -> list[Path]:
    found = [*ROOT.glob("tools/**/*.py"), *ROOT.glob("m5ds/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    return [path for path in found if ".add_argument(" in path.read_text()]


def shared_readers(path: Path) -> list[Path]:
    """The file itself, and for a library's parser those of its folder that are handed its arguments."""
    commands = [*path.parent.glob("*command*.py"), ROOT / "m5ds/train/command.py", ROOT / "m5ds/pretrain.py"]
    return [path] if "tools" in path.parts else [path, *commands]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_is_read(path):
    read = set().union(*(read_attributes(ast.parse(one.read_text())) for one in shared_readers(path)))
    assert options(ast.parse(path.read_text())) - read - SET_BY_OTHERS == set()


def test_an_option_that_nobody_reads_is_found():
    tree = ast.parse("parser.add_argument('--a-b')\nparser.add_argument('c', dest='d')\nprint(arguments.a_b)")
    assert options(tree) == {"a_b", "d"} and read_attributes(tree) == {"a_b"}
    tree = ast.parse("add.add_argument(f'--{x}')\nadd.add_argument('-v', '--verbose')\nshow = '--verbose' in sys.argv")
    assert options(tree) == {DYNAMIC, "verbose"} and read_attributes(tree) == {"verbose"}


def test_there_are_parsers_to_look_at():
    names = {path.name for path in files()}
    assert {"build_shards.py", "find_leaks.py", "lint_shards.py", "command.py", "pretraining_command.py"} <= names
