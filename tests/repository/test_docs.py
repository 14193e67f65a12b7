"""What the pages name is there, and is as they say: paths, links, names, signatures, flags. Nothing is imported."""

import ast
import re

import pytest
from pages import FILES, PAGES, ROOT, Page, declared_flags, flags_of, functions, is_defined, module_file, parsed

MOST_COLUMNS = 100
TOP = ("m5ds", "kernels", "tools", "tests", "configs", "docs", ".ci")
OF_OTHER_PROGRAMS = {
    # deepspeed, accelerate, pip and cuobjdump
    *("--num_gpus", "--multi_gpu", "--num_machines", "--num_processes", "--mixed_precision", "--dynamo_backend"),
    *("--main_process_port", "--cpu", "--no-index", "--no-deps", "--target", "--dump-resource-usage", "--logdir"),
}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@EVERY_PAGE
def test_no_line_is_wider_than_a_reader_likes(page: Page):
    """Tables are as wide as their rows, commands may be copied whole; what a command writes stands between marks."""
    written = re.sub(r"<!-- table .*?<!-- end of table -->", "", page.prose, flags=re.DOTALL)
    assert not [line for line in written.splitlines() if len(line) > MOST_COLUMNS and line[0] != "|"]


@EVERY_PAGE
def test_links_lead_somewhere(page: Page):
    lost = []
    for _, target in page.links:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.path.parent / path).resolve() if path else page.path
        if not found.exists() or (anchor and anchor not in Page(found).anchors):
            lost.append(target)
    assert not lost


@EVERY_PAGE
def test_pages_are_named_by_links(page: Page):
    """`docs/model.md` as plain words is a link that nobody can follow."""
    without = re.sub(r"`[^`]+`|\[[^\]]+\]\([^)]+\)", "", page.prose)
    assert not re.findall(r"[\w./-]+\.md\b", without)


@EVERY_PAGE
def test_paths_exist(page: Page):
    """A path from the top of the repository, or the last parts of one that ends in `.py`."""
    words = [word for span in page.code_spans for word in span.split()]
    words += [word for command in page.commands for word in command]
    lost = [word for word in words if not _is_placeholder(word) and not all(map(_exists, _alternatives(word)))]
    assert not lost


def _is_placeholder(word: str) -> bool:
    """NAME in capitals stands for any; so does a star. `../shared` lies beside the repository."""
    return bool(re.search(r"[A-Z]{2,}|\*|=|^\.\./", word))


def _alternatives(word: str) -> list[str]:
    """a/{b,c} means both."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", word)
    return [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")] if match else [word]


def _exists(word: str) -> bool:
    path = word.rstrip(".,;:").split("::")[0]
    if path.startswith(tuple(f"{top}/" for top in TOP)):
        return (ROOT / path).exists()
    if re.fullmatch(r"[\w./]+\.py", path):
        return any(f"/{file}".endswith(f"/{path}") for file in FILES)
    return True


@EVERY_PAGE
def test_names_of_the_package_are_defined(page: Page):
    spans = [name for span in page.code_spans for name in re.findall(r"\bm5ds(?:\.\w+)+", span)]
    imports = [
        f"{node.module}.{alias.name}"
        for block in page.blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m5ds")
        for alias in node.names
    ]
    assert not [name for name in [*spans, *imports] if not is_defined(name)]


@EVERY_PAGE
def test_quotations_are_those_of_the_code(page: Page):
    """A block of Python that begins with `# path/of/a/file.py` quotes it.

    Definitions have `...` for bodies; parameters, results and annotations are the file's, as are other statements.
    """
    for block in page.blocks("python"):
        if not (match := re.match(r"# (\S+\.py)\n", block)):
            continue
        code, quoted = parsed(match[1]), ast.parse(block)
        true, said = _definitions(code), _definitions(quoted)
        assert {name: true.get(name) for name in said} == said
        statements = {ast.unparse(node) for node in ast.walk(code) if isinstance(node, ast.stmt)}
        defining = (ast.FunctionDef, ast.ClassDef, ast.AnnAssign)
        assert {ast.unparse(node) for node in quoted.body if not isinstance(node, defining)} <= statements


def _definitions(tree: ast.AST, prefix: str = "") -> dict[str, str]:
    """Parameters and results of functions, and annotations of fields, by qualified name."""
    found = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            result = ast.unparse(node.returns) if node.returns else None
            found[f"{prefix}{node.name}"] = f"({ast.unparse(node.args)}) -> {result}"
        elif isinstance(node, ast.AnnAssign):
            found[f"{prefix}{ast.unparse(node.target)}"] = ast.unparse(node.annotation)
        elif isinstance(node, ast.ClassDef):
            found |= _definitions(node, f"{prefix}{node.name}.")
    return found


@EVERY_PAGE
def test_calls_in_backticks_fit_the_functions_parameters(page: Page):
    """`count_targets(batch, seed)` names parameters of a function of ours, in their order."""
    wrong = []
    for span in page.code_spans:
        if not re.fullmatch(r"[\w.]*\w\(.*\)", span):
            continue
        try:
            call = ast.parse(span, mode="eval").body
        except SyntaxError:
            continue
        known = functions().get(_last_name(call.func), []) if isinstance(call, ast.Call) else []
        if known and not any(_fits(call, given) for given in known):
            wrong.append(span)
    assert not wrong


def _last_name(function: ast.expr) -> str:
    return ast.unparse(function).rpartition(".")[2]


def _fits(call: ast.Call, given: ast.arguments) -> bool:
    positional = [one.arg for one in [*given.posonlyargs, *given.args]]
    named = {*positional, *(one.arg for one in given.kwonlyargs)}
    if given.vararg is None and len(call.args) > len(positional):
        return False
    same_words = all(
        not isinstance(value, ast.Name) or value.id == name for value, name in zip(call.args, positional, strict=False)
    )
    return same_words and all(keyword.arg in named or given.kwarg for keyword in call.keywords)


@EVERY_PAGE
def test_commands_use_flags_that_their_programs_have(page: Page):
    wrong = []
    for words in page.commands:
        scripts = [place for place, word in enumerate(words) if word.endswith(".py") and word in FILES]
        if not scripts:
            continue
        script, rest = words[scripts[0]], words[scripts[0] + 1 :]
        flags = [word.partition("=")[0].rstrip(",.;)") for word in rest if word.startswith("--")]
        wrong += [f"{script} {flag}" for flag in flags if flag not in flags_of(script)]
    assert not wrong


@EVERY_PAGE
def test_flags_in_backticks_belong_to_some_program(page: Page):
    programs = [path for path in FILES if path.endswith(".py") and "/test_" not in path]
    known = OF_OTHER_PROGRAMS.union(*map(declared_flags, programs))
    flags = {flag for span in page.code_spans for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", span)}
    assert flags <= known


@EVERY_PAGE
def test_make_targets_exist(page: Page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word for words in page.commands if words[:1] == ["make"] for word in words[1:] if re.fullmatch(r"[a-z-]+", word)
    }
    assert named <= targets


@EVERY_PAGE
def test_keys_of_a_run_are_fields_of_its_configuration(page: Page):
    """`train.validate_every`, `model.objectives.NAME`: the first name after the section is a field of it."""
    defined = _definitions(parsed("m5ds/config.py"))
    classes = {"data": "DataConfig", "model": "ModelConfig", "train": "TrainConfig"}
    keys = [key for word in _words(page) for key in re.findall(r"^(data|model|train)\.([a-z_]+)\b(?!\()", word)]
    assert not [f"{section}.{field}" for section, field in keys if f"{classes[section]}.{field}" not in defined]


def _words(page: Page) -> list[str]:
    return [word for words in [*page.commands, *(span.split() for span in page.code_spans)] for word in words]


CHECKS = {
    test_no_line_is_wider_than_a_reader_likes: "word " * 21,
    test_links_lead_somewhere: "[there](nowhere.md)",
    test_pages_are_named_by_links: "see model.md",
    test_paths_exist: "`m5ds/nowhere.py`",
    test_names_of_the_package_are_defined: "`m5ds.batch.Nothing`",
    test_quotations_are_those_of_the_code: "```python\n# m5ds/hub.py\ndef f() -> None: ...\n```",
    test_calls_in_backticks_fit_the_functions_parameters: "`deal(costs, slots)`",
    test_commands_use_flags_that_their_programs_have: "```\npython tools/export.py \\\n    --nothing\n```",
    test_flags_in_backticks_belong_to_some_program: "`--nothing`",
    test_make_targets_exist: "`make nothing`",
    test_keys_of_a_run_are_fields_of_its_configuration: "`train.nothing=1`",
}
RIGHT = (
    "# A heading\n[here](#a-heading) `m5ds/hub.py` `order.py` `m5ds.batch.Batch.to` `deal(costs, num_slots)`\n"
    "```\npython tools/export.py \\\n    --out DIR\n```\n`make test` `--num_gpus` `train.total_steps=1`\n"
    "```python\n# m5ds/data/batches/order.py\n"
    "def deal(costs: Sequence[float], num_slots: int) -> list[list[int]]: ...\n```\n"
)


@pytest.mark.parametrize(("check", "wrong"), CHECKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_check_notices_what_is_wrong(check, wrong, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(RIGHT)
    check(page=Page(page))
    page.write_text(f"{RIGHT}{wrong}\n")
    with pytest.raises(AssertionError):
        check(page=Page(page))


def test_a_quoted_statement_must_be_in_its_file(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\n# m5ds/pretrain.py\nstop_signal = train(job, stop)\n```\n")
    with pytest.raises(AssertionError):
        test_quotations_are_those_of_the_code(Page(page))


def test_the_kernels_folder_is_a_package_of_m5ds():
    assert module_file("m5ds.kernels.common.layout") == "kernels/common/layout.py"
    assert is_defined("m5ds.kernels.common.layout.PackedLayout.build")
    assert not is_defined("m5ds.kernels.common.layout.PackedLayout.nothing")
