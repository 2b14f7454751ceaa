"""Markdown and code as trees of elements: what they hold, that they are bounded, and that texts can grow."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.errors import InvalidField
from locallab.server.page.highlight import LANGUAGES, LONGEST_LINE, OTHER_NAMES, highlighted, lexer_of
from locallab.server.page.render import LONGEST, NESTING, Block, Node, markdown, render
from tests.support.http_server import Serve, Served

PATIENCE = 10.0
"""Seconds for what takes a third of one: a busy machine is no failure, and quadratic time is minutes."""

TAGS = {
    *("p", "h2", "ul", "ol", "li", "blockquote", "hr", "pre", "code", "em", "strong", "s", "a", "br"),
    *("table", "thead", "tbody", "tr", "th", "td", "span"),
}
"""Tags that the page knows."""

Tree = Node | str


def outline(nodes: Sequence[Tree]) -> str:
    """Return nodes as text: tag.class@href#start(children)."""
    return "".join(node if isinstance(node, str) else _outline(node) for node in nodes)


def _outline(node: Node) -> str:
    marks = [(".", node.kind), ("@", node.href), ("#", node.start), ("!", node.language)]
    return node.tag + "".join(f"{mark}{value}" for mark, value in marks if value is not None) + f"({outline(node.children)})"


def shown(text: str, language: str | None = None) -> list[str]:
    return [outline(block.nodes) for block in render(text, language).blocks]


def words(nodes: Sequence[Tree]) -> str:
    return "".join(node if isinstance(node, str) else words(node.children) for node in nodes)


def every(nodes: Sequence[Tree]) -> Iterator[Node]:
    for node in nodes:
        if isinstance(node, Node):
            yield node
            yield from every(node.children)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A *b*", "h2.level-1(A em(b))"),
        ("a\nb  \nc", "p(abr()bbr()c)"),
        ("**a** ~~b~~ `c`", "p(strong(a) s(b) code(c))"),
        ("- a\n- b", "ul(li(a)li(b))"),
        ("3. a\n\n   b", "ol#3(li(p(a)p(b)))"),
        ("- [ ] a\n- [x] b", "ul(li([ ] a)li([x] b))"),
        ("> a\n> > b", "blockquote(p(a)blockquote(p(b)))"),
        ("---", "hr()"),
        ("|a|b|c|d|\n|-|:-|:-:|-:|\n||2", "table(thead(tr(th(a)th.left(b)th.center(c)th.right(d)))tbody(tr(td()td.left(2))))"),
        ("    a b\n", "pre(code(a b\n))"),
        ("```\na", "pre(code(a))"),
        ("```py title=x\ndef f():\n```", "pre!py(code(span.k(def) span.nf(f)():\n))"),
        ("```nosuch\na\n```", "pre!nosuch(code(a\n))"),
        ("[a](http://b 'c')", "p(a@http://b(a))"),
        ("<mailto:a@b>", "p(a@mailto:a@b(mailto:a@b))"),
        ("see https://a.b/c_d_e(f). And", "p(see a@https://a.b/c_d_e(f)(https://a.b/c_d_e(f)). And)"),
        ("(https://a.b)", "p((a@https://a.b(https://a.b)))"),
        ("![a *b*](http://c/d.png)", "p(a@http://c/d.png(a em(b)))"),
        ("![](http://c/d.png)", "p(a@http://c/d.png(http://c/d.png))"),
        ("[![a](http://b)](http://c)", "p(a@http://c(a))"),
        ("[a http://b](http://c)", "p(a@http://c(a http://b))"),
        ("&lt;&#42;\\*", "p(<**)"),
    ],
)  # fmt: skip
def test_markdown(text: str, expected: str) -> None:
    assert shown(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](data:text/html,x)",
        "[a](vbscript:x)",
        "[a](//example.com)",
        "[a](JaVaScRiPt:x)",
        "![a](data:image/png;base64,AAAA)",
        "[a](file:///etc/passwd)",
        "[a]: http://b 'c'",
        "[ ] [a] [a][b]",
    ],
)
def test_what_is_no_markdown_here_is_shown_as_it_is_written(text: str) -> None:
    assert words(render(text).blocks[0].nodes) == text
    assert not [node for node in every(render(text).blocks[0].nodes) if node.href and node.href != "http://b"]


def test_hidden_characters_of_code_are_shown_by_their_numbers() -> None:
    assert shown("`a\u202eb\u200b`") == ["p(code(aspan.hidden-character(U+202E)bspan.hidden-character(U+200B)))"]
    expected = "pre!py(code(span.s('span.hidden-character(U+2066)')span.hidden-character(U+E0041)\n))"
    assert shown("'\u2066'\U000e0041\n", "py") == [expected]
    assert shown("a\r\nb\rc\0", "text") == ["pre!text(code(a\nbspan.hidden-character(U+000D)cspan.hidden-character(U+0000)))"]
    assert shown("\u05d0\u202eb") == ["p(\u05d0\u202eb)"]  # prose keeps them


def test_a_text_that_is_too_long_is_refused_by_name() -> None:
    assert words(render("x" * LONGEST).blocks[0].nodes) == "x" * LONGEST
    with pytest.raises(InvalidField, match="text: has 32,769 characters, and at most 32,768"):
        render("x" * (LONGEST + 1))


def test_each_language_is_known_to_pygments() -> None:
    unknown = [name for name in (*LANGUAGES, *OTHER_NAMES) if lexer_of(name) is None]
    assert unknown == []
    assert lexer_of("{.python .numberLines}") is lexer_of("py") is lexer_of("Python:a.py") is not None
    assert lexer_of("") is lexer_of("nosuch") is None


HOSTILE_CODE = (
    '/* " \' ` < { ( [ # -- """ \'\'\' <!-- <?php {{ #{ ${ $( :: @a \\" \\n 0x 1e 1.\t\u3042\n' * 3,
    "def f(x): # a\n  return \"b\" + 'c' /* d */ // e\n\n\n<a b='c'>d</a> {e: 1.5e3}",
    "\n\n  \n",
)


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_no_lexer_loses_or_adds_a_character(language: str) -> None:
    for code in HOSTILE_CODE:
        pieces = list(highlighted(code, language, time.thread_time() + 60))
        assert "".join(piece for _, piece in pieces) == code


# What takes the square of its length, or of its lines, in some lexers.
SLOW_CODE = {
    "blank lines": " \n" * 16_000,
    "escapes": ('\\"' * 20 + "\n") * 780,
    "comments": ("<!--" * 10 + "\n") * 780,
    "directives": ("#{" * 20 + "\n") * 780,
    "one line": '\\"' * (LONGEST_LINE // 2),
}


@pytest.mark.parametrize("code", SLOW_CODE.values(), ids=SLOW_CODE)
def test_slow_lexers_are_stopped(code: str) -> None:
    for language in ("c", "css", "html", "javascript", "jsx", "python", "r"):
        began = time.thread_time()
        assert words(render(code, language).blocks[0].nodes) == code
        assert time.thread_time() - began < PATIENCE / 2


def test_code_with_a_long_line_has_no_tokens() -> None:
    for length, coloured in ((LONGEST_LINE, True), (LONGEST_LINE + 1, False)):
        code = "x = 'a'\n" + "b" * length
        pieces = list(highlighted(code, "python", time.thread_time() + 60))
        assert "".join(piece for _, piece in pieces) == code and (len(pieces) > 1) is coloured


def test_the_parser_leaves_nothing_out_where_texts_are_nested_deeply() -> None:
    deep = ">" * NESTING + " a\n"
    assert outline(render(deep + "\nb").blocks[0].nodes).startswith("p.written(")
    assert words(render(deep + "\nb").blocks[0].nodes).startswith(deep.strip())
    assert "".join(shown("- " * 200 + "x")).count("- ") == 200
    nested = "*a **b " * 500 + "c" + "** *" * 500
    assert words(render(nested).blocks[0].nodes).count("a") == 500


# Markdown-like texts: what opens and closes blocks, with few words.
PIECES = st.sampled_from(
    [
        *(
            "\n",
            "\n\n",
            "- ",
            "* ",
            "1. ",
            "> ",
            "# ",
            "#",
            "```",
            "```py",
            "~~~",
            "    ",
            "  ",
            " ",
            "\t",
            "a",
            "b c",
            "---",
            "***",
        ),
        *("===", "-", "*", "`", "x", "|", ":-:", "-:", "[a](http://b)", "![", "]", "(", "**", "_", "~~", "<b>", "&amp;", "\\"),
        *("\r\n", "2) ", "+ ", "10. ", "=", "http://c/d", "\u202e", "| a | b |\n", "|---|---|\n", "\n---\n", "\n```\n"),
    ]
)
TEXTS = st.lists(PIECES, max_size=40).map("".join)


def grown(text: str, cuts: Sequence[int]) -> list[Block]:
    """Return the blocks of a text that grows from cut to cut, sending no block again that stays."""
    kept: list[Block] = []
    line = 0
    for end in sorted(cuts):
        found = later(text[:end], line)
        still_open = found[-1 if text[:end].endswith("\n") else -2 :]
        kept += found[: len(found) - len(still_open)]
        line = still_open[0].line if still_open else line
    return kept + later(text, line)


def later(text: str, line: int) -> list[Block]:
    """Return the blocks of what begins at a line of the text, with their lines in the text."""
    rest = "\n".join(text.split("\n")[line:])
    return [Block(block.line + line, block.nodes) for block in markdown(rest)]


@given(TEXTS, st.data())
def test_a_text_that_grows_has_the_blocks_of_the_whole(text: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert grown(text, cuts) == markdown(text)


@given(TEXTS)
def test_trees_have_known_tags_and_links_only_and_lose_no_word(text: str) -> None:
    blocks = markdown(text)
    lines = text.replace("\r\n", "\n").split("\n")
    assert [block.line for block in blocks] == sorted({block.line for block in blocks})
    for block, after in itertools.pairwise([*blocks, Block(len(lines), [])]):
        nodes = list(every(block.nodes))
        assert {node.tag for node in nodes} <= TAGS
        assert all(node.href is None or node.href.startswith(("http://", "mailto:")) for node in nodes)
        written = "".join(lines[block.line : after.line])
        assert all(words(block.nodes).count(letter) <= written.count(letter) for letter in "abcdx")
        if "|" not in written and "http" not in written and "```" not in written and "~~~" not in written:
            assert words(block.nodes).count("x") == written.count("x")


UNITS = {
    "quotes": ">",
    "lists": "- ",
    "items": "- a\n",
    "numbers": "1. ",
    "stars": "*",
    "nested emphasis": "*a **b_ ",
    "strong": "**a**",
    "underscores": "_",
    "tildes": "~~a ",
    "brackets": "[",
    "links": "[a](",
    "pictures": "![[",
    "backticks": "` `` ",
    "pipes": "|a",
    "tables": "x|y\n-|-\n",
    "fences": "```\n",
    "angles": "<http://a",
    "entities": "&amp",
    "addresses": "http://a)))",
    "backslashes": "\\",
    "lazy lines": "- - - a\nb\n",
    "emoji": "\U0001f600*",
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_the_worst_markdown_takes_a_bounded_time(unit: str) -> None:
    text = unit * (LONGEST // len(unit))
    began = time.thread_time()
    render(text)
    assert time.thread_time() - began < PATIENCE


@pytest.mark.parametrize(
    "text",
    [
        "".join("`" * length + " " for length in range(1, 255)),
        "".join("  " * depth + "- a\n" for depth in range(180)),
        "".join("> " * (line % NESTING) + "- a\n" for line in range(1200)),
        (">" * NESTING + "\n\n") * 1200,
        "a|a|a|a|a\n-|-|-|-|-\n# h\n" * 1300,
        "".join(f"```{language}\nx = '1'\n```\n" for language in sorted(LANGUAGES) * 9)[:LONGEST],
    ],
)
def test_other_bad_markdown_takes_a_bounded_time(text: str) -> None:
    test_the_worst_markdown_takes_a_bounded_time(text)


def test_tables_have_no_more_cells_than_they_have_characters() -> None:
    table = "|" + "a|" * 256 + "\n|" + "-|" * 256 + "\n" + "x\n" * 256
    text = "\n".join([table] * 20)
    nodes = [node for block in render(text).blocks for node in every(block.nodes)]
    assert sum(node.tag in ("td", "th") for node in nodes) <= len(text)
    assert sum(words(block.nodes).count("x") for block in render(text).blocks) == 20 * 256


def test_the_route(served: Served) -> None:
    answer = served.http.post("/api/v1/render", json={"text": "a\n\n- *b*"})
    items = {"tag": "ul", "children": [{"tag": "li", "children": [{"tag": "em", "children": ["b"]}]}]}
    assert answer.json() == {"blocks": [{"line": 0, "nodes": [{"tag": "p", "children": ["a"]}]}, {"line": 2, "nodes": [items]}]}
    code = served.http.post("/api/v1/render", json={"text": "# *a*", "language": "nosuch"}).json()["blocks"]
    assert code[0]["nodes"] == [{"tag": "pre", "language": "nosuch", "children": [{"tag": "code", "children": ["# *a*"]}]}]


def test_the_route_refuses_by_name(served: Served) -> None:
    answer = served.http.post("/api/v1/render", json={"text": "x" * (LONGEST + 1)})
    assert answer.status_code == 400 and answer.json()["detail"].startswith("text: has 32,769 characters")
    assert served.http.post("/api/v1/render", json={"language": "python"}).status_code == 400


def test_the_route_needs_a_key_and_is_not_counted(serve: Serve) -> None:
    with serve(api_key="secret", rate_limit=True, native_rate="1/minute", free_rate="1/minute", pro_rate="1/minute") as served:
        assert served.http.post("/api/v1/render", json={"text": "a"}).status_code == 401
        key = {"authorization": "Bearer secret"}
        answers = [served.http.post("/api/v1/render", json={"text": "a"}, headers=key) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert "x-ratelimit-limit" not in answers[0].headers


def test_the_server_answers_others_while_it_renders(served: Served) -> None:
    with ThreadPoolExecutor(4) as threads:
        slow = [threads.submit(served.http.post, "/api/v1/render", json={"text": "[" * LONGEST}) for _ in range(4)]
        assert served.http.get("/health/live").status_code == 200
        assert not all(each.done() for each in slow)
        assert all(each.result().status_code == 200 for each in slow)
