"""Markdown that a model wrote -> HTML that is safe to put on a page.

In: any text. Out: HTML of a fixed set of tags, without images, styles, ids or handlers; code is coloured by classes.
Two walls: markdown-it-py passes no HTML through, and nh3 (ammonia) removes whatever should not have got past it.
"""

from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

TAGS = set("p br hr h1 h2 h3 h4 h5 h6 em strong s a ul ol li blockquote".split())
TAGS |= set("figure pre code span table thead tbody tr th td".split())
ATTRIBUTES = {
    "a": {"href", "title"},
    "ol": {"start"},
    "figure": {"class"},
    "code": {"data-language"},
    "span": {"class"},
    "th": {"class"},
    "td": {"class"},
}
HIGHLIGHT_LIMIT = 20_000  # characters; lexers are regular expressions, and an answer is no place to wait for one


def render_markdown(text: str) -> str:
    """CommonMark with tables and strikethrough. A link opens in a new tab and tells the other side nothing."""
    return nh3.clean(
        _parser().render(text),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.disable(["image"])  # a picture is a request to wherever the model says
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
