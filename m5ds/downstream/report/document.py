"""A report as a list of blocks, written as one self-contained HTML page or as Markdown."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Grid:
    """A table. Cells are plain text; columns after the first are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    wraps: bool = False
    """Cells of prose: left-aligned, broken over lines."""


@dataclass(frozen=True)
class Drawing:
    """An SVG; Markdown names it only."""

    svg: str
    caption: str
    small: bool = False
    """Two stand beside each other where the window is wide enough."""


@dataclass(frozen=True)
class Card:
    """One product: a data URL of its picture or "", its title, and whether it was right (None: the query)."""

    picture: str
    title: str
    correct: bool | None


@dataclass(frozen=True)
class Gallery:
    """Rows of products; the first of each row is the query."""

    rows: Sequence[Sequence[Card]]
    caption: str = ""


Block = Heading | Text | Code | Grid | Drawing | Gallery

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; font-size: .87rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 1px solid #999; }
.wraps th, .wraps td { text-align: left; white-space: normal; vertical-align: top; }
.caption, figcaption { color: #555; font-size: .87rem; margin: 1.2rem 0 .2rem; }
figcaption { margin-top: .2rem; } nav a { margin-right: 1rem; white-space: nowrap; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
figure.small { display: inline-block; width: 32rem; max-width: 100%; vertical-align: top; margin-right: 1rem; }
pre { background: #f5f5f5; padding: .7rem; font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.row { display: flex; gap: .5rem; margin: .5rem 0; overflow-x: auto; }
.card { flex: 0 0 8.5rem; width: 8.5rem; font-size: .75rem; line-height: 1.25; }
.card { border: 2px solid #ccc; border-radius: 4px; padding: .25rem; }
.card.query { border-color: #222; } .card.yes { border-color: #2a8f4f; } .card.no { border-color: #c0392b; }
.card img, .card .none { width: 100%; height: 6rem; object-fit: contain; background: #f2f2f2; display: block; }
.card .none { display: flex; align-items: center; justify-content: center; color: #888; }
"""


@dataclass
class Document:
    """A title and blocks in reading order."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks

    def to_html(self) -> str:
        """One page that loads nothing from anywhere, its sections linked at the top."""
        headings = [block.text for block in self.blocks if isinstance(block, Heading)]
        links = " ".join(f'<a href="#{_anchor(text)}">{html.escape(text)}</a>' for text in headings)
        body = "\n".join([f"<nav>{links}</nav>" if links else "", *(_html(block) for block in self.blocks)])
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n"
            f"<body><h1>{html.escape(self.title)}</h1>\n{body}\n</body></html>\n"
        )

    def to_markdown(self) -> str:
        """The same blocks; pictures are named and left to the HTML page."""
        return "\n\n".join([f"# {self.title}", *(text for block in self.blocks if (text := _markdown(block)))]) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f'<h2 id="{_anchor(block.text)}">{html.escape(block.text)}</h2>'
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Drawing):
        kind = ' class="small"' if block.small else ""
        return f"<figure{kind}>{block.svg}<figcaption>{html.escape(block.caption)}</figcaption></figure>"
    if isinstance(block, Gallery):
        rows = "\n".join(f'<div class="row">{"".join(_card(card) for card in row)}</div>' for row in block.rows)
        return f"<figure><figcaption>{html.escape(block.caption)}</figcaption>{rows}</figure>"
    caption = f'<p class="caption">{html.escape(block.caption)}</p>' if block.caption else ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
    # Paths may break after each part.
    shown = [[html.escape(cell).replace("/", "/<wbr>" if block.wraps else "/") for cell in row] for row in block.rows]
    rows = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in shown)
    kind = ' class="wraps"' if block.wraps else ""
    table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'{caption}<div class="scroll">{table}</div>'


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _card(card: Card) -> str:
    kind = {None: "query", True: "yes", False: "no"}[card.correct]
    mark = {None: "query", True: "found", False: "wrong"}[card.correct]
    title = html.escape(card.title)
    picture = f'<img src="{card.picture}" alt="{title}">' if card.picture else '<span class="none">no picture</span>'
    return f'<div class="card {kind}">{picture}<b>{mark}</b> {title}</div>'


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    if isinstance(block, Drawing):
        return f"*{block.caption}* (drawn in the HTML page)"
    if isinstance(block, Gallery):
        lines = [
            " | ".join(f"{'' if card.correct is None else '+ ' if card.correct else '- '}{card.title}" for card in row)
            for row in block.rows
        ]
        return f"*{block.caption}*\n\n" + "\n".join(f"* {line}" for line in lines)
    rows = [block.header, ["---", *["---:"] * (len(block.header) - 1)], *block.rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"{block.caption}\n\n{table}" if block.caption else table
