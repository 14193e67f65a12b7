"""Each block of a report, as HTML and as Markdown."""

import pytest

from m5ds.downstream.report.document import Card, Code, Document, Drawing, Gallery, Grid, Heading, Text

GALLERY = Gallery(
    [[Card("", "q<", None), Card("data:x", "a", True), Card("", "b", False)], [Card("", "r", None)]], "cap<"
)
CASES = {
    "heading": (Heading("A & B, c"), '<h2 id="a-b-c">A &amp; B, c</h2>', "## A & B, c"),
    "text": (Text("a < b"), "<p>a &lt; b</p>", "a < b"),
    "code": (Code("x > 'y'"), "<pre>x &gt; &#x27;y&#x27;</pre>", "```\nx > 'y'\n```"),
    "drawing": (
        Drawing("<svg/>", "cap <"),
        "<figure><svg/><figcaption>cap &lt;</figcaption></figure>",
        "*cap <* (drawn in the HTML page)",
    ),
    "small drawing": (
        Drawing("<svg/>", "cap", small=True),
        '<figure class="small"><svg/><figcaption>cap</figcaption></figure>',
        "*cap* (drawn in the HTML page)",
    ),
    "grid": (
        Grid(["h<", "n"], [["a/b", "1"], ["c|d", "2"]], "cap <"),
        '<p class="caption">cap &lt;</p><div class="scroll"><table><thead><tr><th>h&lt;</th><th>n</th></tr></thead>'
        "<tbody><tr><td>a/b</td><td>1</td></tr>\n<tr><td>c|d</td><td>2</td></tr></tbody></table></div>",
        "cap <\n\n| h< | n |\n| --- | ---: |\n| a/b | 1 |\n| c\\|d | 2 |",
    ),
    "grid that wraps": (
        Grid(["h", "n", "m"], [["a/b<", "1", "2"]], wraps=True),
        '<div class="scroll"><table class="wraps"><thead><tr><th>h</th><th>n</th><th>m</th></tr></thead>'
        "<tbody><tr><td>a/<wbr>b&lt;</td><td>1</td><td>2</td></tr></tbody></table></div>",
        "| h | n | m |\n| --- | ---: | ---: |\n| a/b< | 1 | 2 |",
    ),
    "gallery": (
        GALLERY,
        '<figure><figcaption>cap&lt;</figcaption><div class="row">'
        '<div class="card query"><span class="none">no picture</span><b>query</b> q&lt;</div>'
        '<div class="card yes"><img src="data:x" alt="a"><b>found</b> a</div>'
        '<div class="card no"><span class="none">no picture</span><b>wrong</b> b</div></div>\n'
        '<div class="row"><div class="card query"><span class="none">no picture</span><b>query</b> r</div></div>'
        "</figure>",
        "*cap<*\n\n* q< | + a | - b\n* r",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_is_written_as_it_should_be(name):
    block, page, text = CASES[name]
    document = Document("t")
    document.add(block)
    assert document.to_markdown() == f"# t\n\n{text}\n"
    body = document.to_html().partition("<h1>t</h1>\n")[2].removesuffix("\n</body></html>\n")
    links = '<nav><a href="#a-b-c">A &amp; B, c</a></nav>' if name == "heading" else ""
    assert body == f"{links}\n{page}"


def test_blocks_follow_each_other_and_headings_are_linked_at_the_top():
    document = Document("a<b", [Heading("One")])
    document.add(Text(""), Heading("Two!"), Text("x"))
    page = document.to_html()
    assert page.startswith('<!doctype html>\n<html lang="en">') and "<title>a&lt;b</title><style>" in page
    assert '<nav><a href="#one">One</a> <a href="#two">Two!</a></nav>\n<h2 id="one">One</h2>\n<p></p>' in page
    assert document.to_markdown() == "# a<b\n\n## One\n\n## Two!\n\nx\n"
    assert Document("t").blocks == [] and "<nav>" not in Document("t").to_html()
