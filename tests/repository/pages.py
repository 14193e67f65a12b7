"""The repository's pages and its source as a reader meets them: what a page names, and where that is defined."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
FILES = frozenset(
    path.relative_to(ROOT).as_posix()
    for top in ("m5ds", "kernels", "tools", "tests", "configs", "docs", ".ci")
    for path in (ROOT / top).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
) | {path.name for path in ROOT.iterdir() if path.is_file()}


@dataclass(frozen=True)
class Page:
    """A Markdown page by the kinds of its lines. Code is what stands between fences."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def lines(self) -> list[tuple[str, str | None]]:
        """(line, language of the code block that it is in, None outside), the fences themselves left out."""
        found: list[tuple[str, str | None]] = []
        language: str | None = None
        for line in self.path.read_text().splitlines():
            if line.startswith("```"):
                language = line[3:] if language is None else None
            else:
                found.append((line, language))
        assert language is None, f"{self.name}: a code block does not end"
        return found

    @property
    def prose(self) -> str:
        """Everything outside code blocks, tables and headings included."""
        return "\n".join(line for line, language in self.lines if language is None)

    @property
    def code_spans(self) -> list[str]:
        """What stands in backticks inside the prose."""
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    @property
    def links(self) -> list[tuple[str, str]]:
        """(text, target) of every link."""
        return re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", self.prose)

    @property
    def anchors(self) -> set[str]:
        """What GitHub makes of the headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def blocks(self, language: str) -> list[str]:
        """Code blocks of that language; "" is the one of blocks that name none."""
        runs = groupby(self.lines, key=lambda line: line[1])
        return ["\n".join(line for line, _ in run) + "\n" for found, run in runs if found == language]

    @property
    def commands(self) -> list[list[str]]:
        """Words of every command line, of code blocks and of backticks, continued lines joined."""
        blocks = "\n".join(self.blocks("")).replace("\\\n", " ")
        found = [re.sub(r"(^|\s)#.*", "", line) for line in [*blocks.splitlines(), *self.code_spans]]
        return [re.sub(r"[\[\]]", " ", line).split() for line in found]


PAGES = tuple(
    Page(path) for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
)


@cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def source_files() -> list[str]:
    """The package's own modules."""
    return [path for path in sorted(FILES) if path.endswith(".py") and path.startswith(("m5ds/", "kernels/"))]


def module_file(dotted: str) -> str | None:
    """The file of a module of `m5ds`, whose `m5ds.kernels` is the folder `kernels`; None where there is none."""
    base = re.sub(r"^m5ds/kernels", "kernels", dotted.replace(".", "/"))
    return next((path for path in (f"{base}.py", f"{base}/__init__.py") if path in FILES), None)


def defined_in(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or class defines or imports, by name."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {
                name.id: node for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name): node for alias in node.names}
    return found


def is_defined(dotted: str) -> bool:
    """Whether `m5ds.module.Name.attribute` is there. What a base class gives is not looked for."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if path := module_file(".".join(parts[:length])):
            body = parsed(path).body
            for name in parts[length:]:
                node = defined_in(body).get(name)
                if node is None:
                    return False
                body = getattr(node, "body", [])
            return True
    return False


@cache
def functions() -> dict[str, list[ast.arguments]]:
    """Parameters by the name of each function and method; a class stands for its `__init__`. `self` is left out."""
    found: dict[str, list[ast.arguments]] = {}
    for path in source_files():
        tree = parsed(path)
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        methods = {id(item): node.name for node in classes for item in node.body if isinstance(item, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                owner = methods.get(id(node))
                name = owner if owner and node.name == "__init__" else node.name
                found.setdefault(name, []).append(without_self(node.args) if owner else node.args)
    return found


def without_self(given: ast.arguments) -> ast.arguments:
    rest = given.args[1:] if given.args and given.args[0].arg in ("self", "cls") else given.args
    fields = {**dict(ast.iter_fields(given)), "args": rest}
    return ast.arguments(**fields)


def flags_of(script: str) -> set[str]:
    """Every `--flag` that a program declares, or a module of ours that it imports, at any remove."""
    seen: set[str] = set()
    waiting, flags = [script], {"--help"}
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            flags |= declared_flags(path)
            waiting += imported_files(path)
    return flags


@cache
def declared_flags(path: str) -> set[str]:
    """Flags of a file's `add_argument` calls. `f"--{name}"` in a loop is any word there or in what it imports."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
            if any(isinstance(word, ast.JoinedStr) for word in node.args):
                files = [path, *imported_files(path)]
                found |= {f"--{text}" for file in files for text in constants(file) if text.isidentifier()}
    return found


def constants(path: str) -> set[str]:
    """The strings in a file."""
    nodes = ast.walk(parsed(path))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@cache
def imported_files(path: str) -> tuple[str, ...]:
    """Files of ours that a file imports."""
    modules = [module for node in ast.walk(parsed(path)) for module in imported(node)]
    folders = [f"{parent}/".removeprefix("./") for parent in Path(path).parents]
    beside = [f"{folder}{module.replace('.', '/')}.py" for folder in folders for module in modules]
    return tuple(
        {*filter(None, map(module_file, modules)), *(file for file in beside if file in FILES)} - {path},
    )


def imported(node: ast.AST) -> Iterator[str]:
    """Modules that an import statement may mean."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
