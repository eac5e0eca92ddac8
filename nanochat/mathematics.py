r"""Mathematics in Markdown: $x$, $$x$$, \(x\) and \[x\] become MathML, which browsers draw without a script.

In: a markdown-it parser to extend. Out: the same parser; LaTeX that cannot be converted is shown as it was written.
While a text is being written (env["writing"]), a formula that is not closed yet is shown as its source in one piece.
"""

import re
from html import unescape
from xml.etree import ElementTree

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

TAGS = set("math mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover".split())
TAGS |= set("mtable mtr mtd mstyle mpadded mphantom menclose mmultiscripts mprescripts none".split())
ATTRIBUTES = set("display displaystyle scriptlevel mathvariant stretchy fence form accent accentunder".split())
ATTRIBUTES |= set("linethickness columnalign columnspacing rowspacing notation lspace rspace width height".split())
ATTRIBUTES |= set("depth voffset minsize maxsize separator largeop movablelimits symmetric".split())

MAX_LENGTH = 2_000  # characters; also bounds how far an opening that is never closed is followed
# Macros can grow without end, and the others set attributes that no formula needs.
REFUSED = re.compile(r"\\(def|let|(re|provide)?newcommand|(re)?newenvironment|DeclareMath|href|style|class|id)")
INLINE = {
    # A dollar is also money: a formula neither begins nor ends with a space, and no digit follows it.
    "$": r"\$(?!\s)((?:\\.|[^\\$`]){1,LIMIT}?)(?<!\s)\$(?!\d)",
    "$$": r"\$\$((?:\\.|[^\\$]){1,LIMIT}?)\$\$",
    r"\(": r"\\\(((?:[^\\]|\\[^()]){1,LIMIT})(?:\\\)|\\?\Z)",
    r"\[": r"\\\[((?:[^\\]|\\[^\[\]]){1,LIMIT})(?:\\\]|\\?\Z)",
}
INLINE = {opener: re.compile(rule.replace("LIMIT", str(MAX_LENGTH)), re.DOTALL) for opener, rule in INLINE.items()}
CLOSERS = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
DISPLAYED = ("$$", r"\[")


def add_mathematics(parser: MarkdownIt) -> None:
    """Teach a parser the four ways to write a formula, and its renderer to write MathML."""
    parser.inline.ruler.before("escape", "formula", _read_inline)
    places = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("fence", "formula", _read_block, places)
    parser.add_render_rule("formula", _render)


def to_mathml(latex: str, display: bool) -> str | None:
    """MathML of a formula; None if it is not LaTeX that we convert.

    The tree is filtered and written here: latex2mathml's own text form leaves the < of \\text{<b>} as it is."""
    if len(latex) > MAX_LENGTH or REFUSED.search(latex):
        return None
    try:
        tree = convert_to_element(latex, display="block" if display else "inline")
    except Exception:  # the converter has many ways to say that this is not LaTeX, RecursionError among them
        return None
    for element in tree.iter():
        if element.tag not in TAGS:
            return None
        element.attrib = {name: value for name, value in element.attrib.items() if name in ATTRIBUTES}
        element.text, element.tail = unescape(element.text or ""), None
    return ElementTree.tostring(tree, encoding="unicode")


def _read_inline(state: StateInline, silent: bool) -> bool:
    opener = next((o for o in ("$$", "$", r"\(", r"\[") if state.src.startswith(o, state.pos)), None)
    found = opener and INLINE[opener].match(state.src, state.pos)
    if not found or not found[1].strip():
        return False
    closed = found[0].endswith(CLOSERS[opener])
    if not closed and not state.env.get("writing"):
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup = found[1], opener
        token.meta = {"open": not closed, "source": found[0]}
    state.pos = found.end()
    return True


def _read_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""A paragraph of its own from $$ to $$ or \[ to \]; at the end of the text the closing may still be missing."""
    begin = state.bMarks[start] + state.tShift[start]
    opener = state.src[begin : begin + 2]
    if opener not in DISPLAYED or state.is_code_block(start):
        return False
    lines, line, text, closed = [], start, state.src[begin + 2 : state.eMarks[start]], False
    while not closed:
        before, closed, after = text.partition(CLOSERS[opener])
        if after.strip():
            return False
        lines.append(before)
        line += 1
        if closed or line >= end or state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            break
        text = state.getLines(line, line + 1, state.blkIndent, False)
    content = "\n".join(lines)
    if not content.strip() if closed else line < end or not state.env.get("writing"):
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.block, token.content, token.markup, token.map = True, content, opener, [start, line]
        token.meta = {"open": not closed, "source": opener + content + (CLOSERS[opener] if closed else "")}
        state.line = line
    return True


def _render(renderer, tokens, index, options, environment) -> str:
    token = tokens[index]
    mathml = None if token.meta["open"] else to_mathml(token.content.strip(), token.markup in DISPLAYED)
    if mathml is None:
        mathml = f'<code class="formula">{escapeHtml(token.meta["source"].strip())}</code>'
    return f'<p class="formula">{mathml}</p>\n' if token.block else mathml
