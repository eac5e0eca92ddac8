"""Markdown that a model wrote -> HTML that is safe to put on a page.

In: any text. Out: HTML and MathML of a fixed set of tags, without images, styles, ids or handlers; code is coloured by
classes. Two walls: markdown-it-py passes no HTML through, and nh3 (ammonia) removes whatever should not get past it.
"""

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from nanochat import mathematics
from nanochat.mathematics import add_mathematics

TAGS = set("p br hr h1 h2 h3 h4 h5 h6 em strong s a ul ol li blockquote".split())
TAGS |= set("figure pre code span table thead tbody tr th td".split())
ATTRIBUTES = {
    "a": {"href", "title"},
    "ol": {"start"},
    "p": {"class"},
    "figure": {"class"},
    "code": {"class", "data-language"},
    "span": {"class"},
    "th": {"class"},
    "td": {"class"},
    **{tag: mathematics.ATTRIBUTES for tag in mathematics.TAGS},
}
HIGHLIGHT_LIMIT = 20_000  # characters; lexers are regular expressions, and an answer is no place to wait for one


def render_markdown(text: str, writing: bool = False) -> str:
    """CommonMark with tables, strikethrough and mathematics. A link opens in a new tab and tells nobody where from.

    `writing`: more text will follow, and what is only half there is shown as what it will most likely be."""
    return sanitize(_parser().render(settle(text) if writing else text, {"writing": writing}))


def sanitize(html: str) -> str:
    """The second wall: HTML of whatever origin -> only the tags and attributes that render_markdown writes."""
    return nh3.clean(
        html,
        tags=TAGS | mathematics.TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


# A last line that may become a rule, an underlined heading, a list, a table, a formula or the end of a code block.
UNDECIDED = re.compile(r"(?:^|\n)[ \t]*(?:[-=*+#>|:~`_\s]+|\d{1,9}[.)]?[ \t]*|(?:\$\$?|\\\[?)\s*)\Z")
TABLE_HEAD = re.compile(r"(?:\A\n*|\n[ \t]*\n)[ \t]*\|[^\n]*\n?\Z")
HALF_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\([^()\s]*\Z")
MARKS = re.compile(r"`+|\*\*|__|~~|\*|_")


def settle(text: str) -> str:
    """Markdown that is still being written, without the signs at its end that mean nothing yet, and with its open
    emphasis and code closed. So no heading, table or word changes its look when the rest arrives."""
    in_code = len(re.findall(r"^[ ]{0,3}```", text, re.MULTILINE)) % 2 == 1
    if in_code:
        return re.sub(r"\n[ ]{0,3}`{1,2}\Z", "", text)
    text = TABLE_HEAD.sub("", UNDECIDED.sub("", text))
    head, _, tail = text.rpartition("\n\n")
    tail = HALF_LINK.sub(r"\1", tail)
    tail = re.sub(r"[*_~`\s]+\Z", "", tail)
    return f"{head}\n\n{tail}{''.join(reversed(_open_marks(tail)))}"


def _open_marks(text: str) -> list[str]:
    """Signs of emphasis, deletion and code that have been opened and not closed, outermost first."""
    marks: list[str] = []
    for found in MARKS.finditer(text):
        mark, (start, end) = found[0], found.span()
        alone = text[end : end + 1].isspace() or text[max(0, start - 1) : start].isalnum()
        if mark in marks:
            del marks[marks.index(mark) :]
        elif not alone and not any(one[0] == "`" for one in marks):
            marks.append(mark)
    return marks


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.disable(["image"])  # a picture is a request to wherever the model says
    add_mathematics(parser)
    parser.add_render_rule("fence", _render_code)
    parser.add_render_rule("code_block", _render_code)
    parser.add_render_rule("th_open", _render_cell)
    parser.add_render_rule("td_open", _render_cell)
    return parser


def _render_code(renderer, tokens, index, options, environment) -> str:
    token = tokens[index]
    language = (token.info.split() or [""])[0][:30]
    return (
        f'<figure class="code"><pre><code data-language="{escapeHtml(language)}">'
        f"{_highlight(token.content, language)}</code></pre></figure>\n"
    )


def _highlight(code: str, language: str) -> str:
    if language and len(code) <= HIGHLIGHT_LIMIT:
        try:
            lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
            return highlight(code, lexer, HtmlFormatter(nowrap=True, classprefix="c-"))
        except ClassNotFound:
            pass
    return escapeHtml(code)


def _render_cell(renderer, tokens, index, options, environment) -> str:
    """markdown-it writes the alignment as a style, which the page's Content-Security-Policy forbids."""
    token = tokens[index]
    style = str(token.attrs.get("style", ""))
    side = style.removeprefix("text-align:")
    return f'<{token.tag} class="{side}">' if side in ("left", "center", "right") else f"<{token.tag}>"
