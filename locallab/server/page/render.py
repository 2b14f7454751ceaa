"""Texts as trees of elements, which the page builds from the tags it knows: nothing here is HTML text.

Markdown is CommonMark with tables and strikethrough, without raw HTML, and without link reference definitions: a block depends
on its own lines only, so a text that grows is rendered again from where one of its last blocks began (see `markdown`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated

import msgspec
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.token import Token
from msgspec import Meta

from locallab.errors import InvalidField
from locallab.server.page.highlight import SECONDS, highlighted, spelled_out

LONGEST = 32_768
"""Characters of a text. The slowest that are known take about half a second."""

NESTING = 24
"""Depth of quotes and lists. A block that goes deeper is shown as it was written."""

MOST_CELLS = LONGEST // 2
"""Cells of tables that a text can have, each with its bar."""

DEPTH = 60
"""Depth of elements; deeper emphasis has none."""

_LINKED = re.compile(r"(https?://|mailto:)[^\s]", re.IGNORECASE)
_BARE = re.compile(r"\bhttps?://[^\s<>\"`\\]+", re.IGNORECASE)
_TAGS = {"paragraph": "p", "bullet_list": "ul", "ordered_list": "ol", "list_item": "li", "link": "a"}


class Node(msgspec.Struct, omit_defaults=True):
    """An element. A text is a child by itself."""

    tag: str
    kind: Annotated[str | None, Meta(description="class, such as that of a token of code")] = msgspec.field(
        name="class", default=None
    )
    href: Annotated[str | None, Meta(description="of a link: http, https or mailto")] = None
    start: Annotated[int | None, Meta(description="first number of a list, if not 1")] = None
    language: Annotated[str | None, Meta(description="of a block of code, as the text names it")] = None
    children: list[Node | str] = []


class Block(msgspec.Struct):
    """A block of the text."""

    line: Annotated[int, Meta(description="where it begins; lines end in LF, the first is 0", ge=0)]
    nodes: list[Node | str]


class RenderBody(msgspec.Struct):
    """What to render."""

    text: Annotated[
        str, Meta(description=f"Markdown, at most {LONGEST:,} characters", extra_json_schema={"maxLength": LONGEST})
    ]
    language: Annotated[str | None, Meta(description="the text is code in this language, and no Markdown")] = None


class Rendering(msgspec.Struct):
    """The blocks of the text, in order. Text between them is blank."""

    blocks: list[Block]


def render(text: str, language: str | None = None) -> Rendering:
    """Return the blocks of a text. Raises InvalidField for one that is too long."""
    if len(text) > LONGEST:
        raise InvalidField("text", f"has {len(text):,} characters, and at most {LONGEST:,} are rendered at once")
    if language is None:
        return Rendering(markdown(text))
    return Rendering([Block(0, [_Builder().code(text.replace("\r\n", "\n"), language)])])


def markdown(text: str) -> list[Block]:
    """Return the top-level blocks of Markdown.

    Where a text ends in LF, all of its blocks but the last one stay as they are, whatever follows, and so does the line where
    the last one begins; in the middle of a line, that holds for all but the last two.
    """
    text = text.replace("\r\n", "\n").replace("\0", "\ufffd")
    tokens, lines, builder = _PARSER.parse(text), text.split("\n"), _Builder()
    starts = [index for index, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
    return [_block(tokens[first:end], lines, builder) for first, end in pairwise([*starts, len(tokens)])]


def _block(tokens: Sequence[Token], lines: Sequence[str], builder: _Builder) -> Block:
    assert tokens[0].map is not None
    line, end = tokens[0].map
    if any(token.nesting > 0 and token.level + 1 >= NESTING for token in tokens):  # the parser leaves out what is deeper
        return Block(line, [Node("p", "written", children=["\n".join(lines[line:end])])])
    return Block(line, builder.tree(tokens))


def _bounded_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The rule for tables, which adds to each row the cells that it lacks: within the number of cells that a text can have."""
    cells = state.env.get("cells", 0)
    if cells > MOST_CELLS or start + 2 > end:
        return False
    columns = state.src.count("|", state.bMarks[start + 1], state.eMarks[start + 1]) + 1
    before = len(state.tokens)
    found = table(state, start, min(end, start + 2 + MOST_CELLS // columns), silent)
    state.env["cells"] = cells + (len(state.tokens) - before) // 3
    return found


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": NESTING})
    parser.enable(["table", "strikethrough"]).disable(["reference", "normalize", "html_block", "html_inline"])
    parser.block.ruler.at("table", _bounded_table, {"alt": ["paragraph", "reference"]})
    parser.validateLink = lambda url: _LINKED.match(url) is not None  # type: ignore[method-assign]
    return parser


_PARSER = _parser()


class _Builder:
    """Makes elements of the tokens of one text. Its code has colours as long as there is time for them."""

    def __init__(self) -> None:
        self._until = time.thread_time() + SECONDS

    def tree(self, tokens: Sequence[Token], linked: bool = False) -> list[Node | str]:
        """Return the elements of the tokens. `linked`: they are in a link, where there are no others."""
        top: list[Node | str] = []
        stack = [top]
        links = [linked]
        for token in tokens:
            if token.nesting < 0:
                children = stack.pop()
                links.pop()
                if token.type == "tr_close":
                    _drop_added_cells(children)
                continue
            is_link = token.type == "link_open"
            if token.nesting == 0:
                stack[-1].extend(self._leaf(token, links[-1]))
                continue
            links.append(links[-1] or is_link)
            if token.hidden or len(stack) > DEPTH or (is_link and links[-2]):
                stack.append(stack[-1])
            else:
                node = _element(token)
                stack[-1].append(node)
                stack.append(node.children)
        return top

    def _leaf(self, token: Token, linked: bool) -> Iterator[Node | str]:
        match token.type:
            case "inline":
                yield from self.tree(token.children or (), linked)
            case "text":
                yield from [token.content] if linked else _with_links(token.content)
            case "code_inline":
                yield Node("code", children=_spelled(token.content))
            case "fence" | "code_block":
                yield self.code(token.content, next(iter(token.info.split()), ""))
            case "image":
                words = self.tree(token.children or (), True) or [str(token.attrs["src"])]
                yield from words if linked else [Node("a", href=str(token.attrs["src"]), children=words)]
            case "hr":
                yield Node("hr")
            case "softbreak" | "hardbreak":
                yield Node("br")
            case _:
                yield token.content

    def code(self, text: str, language: str) -> Node:
        children: list[Node | str] = []
        for kind, piece in highlighted(text, language, self._until):
            parts = _spelled(piece)
            children += [Node("span", kind, children=parts)] if kind else parts
        return Node("pre", language=language or None, children=[Node("code", children=children)])


def _element(token: Token) -> Node:
    name = token.type.removesuffix("_open")
    node = Node(_TAGS.get(name, token.tag))
    if name == "heading":  # all of one level: they need not follow from those of the page
        node.tag, node.kind = "h2", f"level-{token.tag[1:]}"
    elif name == "link":
        node.href = str(token.attrs["href"])
    elif "start" in token.attrs:
        node.start = int(token.attrs["start"])
    elif "style" in token.attrs:
        node.kind = str(token.attrs["style"]).removeprefix("text-align:")
    return node


def _drop_added_cells(row: list[Node | str]) -> None:
    while row and isinstance(row[-1], Node) and row[-1].tag == "td" and not row[-1].children:
        row.pop()


def _with_links(text: str) -> Iterator[Node | str]:
    """Yield the text with its http addresses as links."""
    done = 0
    for found in _BARE.finditer(text):
        url = found[0].rstrip(".,;:!?'*_~")
        if url.endswith(")") and url.count("(") < url.count(")"):
            url = url.rstrip(")")
        href = _PARSER.normalizeLink(url)
        if _PARSER.validateLink(href):
            yield from filter(None, [text[done : found.start()]])
            yield Node("a", href=href, children=[url])
            done = found.start() + len(url)
    yield from filter(None, [text[done:]])


def _spelled(text: str) -> list[Node | str]:
    """Return the text with its hidden characters as elements that show their numbers."""
    parts = spelled_out(text)
    return [
        Node("span", "hidden-character", children=[part]) if index % 2 else part for index, part in enumerate(parts) if part
    ]
