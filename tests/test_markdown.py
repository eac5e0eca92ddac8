"""Answers as HTML: mathematics, text that is only half written, and the second wall on its own."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nanochat.markdown import render_markdown, sanitize
from nanochat.mathematics import ATTRIBUTES, MAX_LENGTH, TAGS, to_mathml

TAG = re.compile(r"<(/?)(\w+)")


@pytest.mark.parametrize(
    "text", ["$x^2$", r"\(x^2\)", "$$x^2$$", r"\[x^2\]", "$$\nx^2\n$$", "\\[\nx^2\n\\]", "- $x^2$"]
)
def test_a_formula_becomes_mathml(text):
    html = render_markdown(f"Before.\n\n{text}\n\nAfter.")
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html and "$" not in html and "\\" not in html
    assert ('display="block"' in html) == ("$$" in text or "[" in text)


@pytest.mark.parametrize(
    "latex, found",
    [
        (r"\frac{1}{2}", "<mfrac>"),
        (r"\sqrt[3]{x}", "<mroot>"),
        (r"\sum_{i=1}^n \alpha_i", "∑"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "<mtable>"),
        (r"\left(\frac{a}{b}\right)", "</mfrac>"),
        (r"a < b \& c", "&lt;"),
        (r"\mathbb{R} \to \operatorname{softmax}", "ℝ"),
        (r"\begin{cases}1 & x>0\\0 & x\le 0\end{cases}", "≤"),
        (r"\text{if } x", "if"),
    ],
)
def test_the_usual_latex(latex, found):
    html = render_markdown(f"${latex}$")
    assert html.startswith("<p><math") and found in html


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "it costs 5$ or 6$",
        "`$x$`",
        r"\$x\$",
        "$ x $",
        "$",
        "$$",
        r"\(",
        "a $$ b",
        "```\n$x$\n```",
        r"\\(x\\)",
    ],
)
def test_money_and_code_are_no_formulas(text):
    assert "<math" not in render_markdown(text) and 'class="formula"' not in render_markdown(text)


@pytest.mark.parametrize(
    "latex",
    [r"\left(", "{" * 500, r"\def\a{\a\a}\a", r"\newcommand{\x}{y}\x", r"\href{javascript:alert(1)}{x}", "^" * 900],
)
def test_what_cannot_be_converted_is_shown_as_it_was_written(latex):
    assert to_mathml(latex, True) is None
    html = render_markdown(f"$$\n{latex}\n$$")
    assert html.startswith('<p class="formula"><code class="formula">$$') and "<math" not in html


def test_text_within_a_formula_stays_text():
    assert "&lt;img" in to_mathml(r"\text{<img src=x onerror=alert(1)>}", False)
    assert "<img" not in to_mathml(r"\text{<img src=x onerror=alert(1)>}", False)
    assert to_mathml("x" * (MAX_LENGTH + 1), False) is None


# ---------------------------------------------------------------------------------------------------------------------
# While it is written

DOCUMENT = r"""# A title

Some **bold words** and *slanted ones*, `code`, ~~gone~~ and [a link](https://example.org/path).
A second line with __strong__ and snake_case_words.

- one
- two with **bold**
  - inner

Text right before a list:
1. first
2. second

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x):
    return "``" + x
```

The formula $x^2$ and \(y_1 * z_2 * w\), then

$$
\frac{a}{b} = c
$$

\[
- x
= y
\]

> A quotation
> of two lines

---

The end: 2 * 3 * 4 and 5**2 cost $5.
"""


def blocks(html: str) -> list[str]:
    """The tags of the outermost elements."""
    found, depth = [], 0
    for closing, tag in TAG.findall(html):
        if not closing and depth == 0:
            found.append(tag)
        depth += 0 if tag in ("br", "hr") else -1 if closing else 1
    return found


def test_a_half_written_answer_never_takes_back_what_it_showed():
    """Cut anywhere, it has the first blocks of the whole answer, and none of its signs show as signs."""
    whole = blocks(render_markdown(DOCUMENT))
    assert len(whole) == 13
    for length in range(len(DOCUMENT)):
        html = render_markdown(DOCUMENT[:length], writing=True)
        found = blocks(html)
        assert found == whole[: len(found)], DOCUMENT[:length][-40:]
        text = re.sub(r"<code.*?</code>|<[^>]*>", "", html, flags=re.DOTALL).replace("5**2", "")
        assert not re.search(r"\*\*|~~|__|\]\(|\$\$|\|", text), DOCUMENT[:length][-40:]


@pytest.mark.parametrize("text", ["a * b", "x_i and y_j", "2 < 3", "5**2 is 25", "* one", "plain", "a `b` **c** d"])
def test_finished_text_is_the_same_while_writing(text):
    assert render_markdown(text + " done", writing=True) == render_markdown(text + " done")


def test_long_and_hostile_text_comes_to_an_end():
    """Patterns that make naive parsers quadratic or worse: the suite would hang."""
    for piece in (
        "$a ",
        r"\(",
        r"\[ x ",
        "*a ",
        "`a ",
        "_a_b",
        "[a](",
        "|",
        "```\n",
        "-\n",
        "$$a$$ ",
        "**",
        "\\",
        "<a ",
    ):
        render_markdown(piece * (40_000 // len(piece)), writing=True)


# ---------------------------------------------------------------------------------------------------------------------
# What comes through

ATTACKS = Path(__file__).with_name("attacks.txt").read_text(encoding="utf-8").split("\n%%\n")


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_that_a_model_writes_can_act_on_the_page(text):
    for tag, attributes in Tags(render_markdown(text)).found:
        assert tag not in {
            "script",
            "style",
            "img",
            "svg",
            "iframe",
            "form",
            "input",
            "button",
            "base",
            "meta",
            "link",
            "video",
        }
        allowed = ATTRIBUTES if tag in TAGS else {"href", "title", "target", "rel", "class", "start", "data-language"}
        assert set(attributes) <= allowed
        if "href" in attributes:
            assert not re.match(r"(?!https?:|mailto:)[a-z][a-z0-9+.-]*:", attributes["href"], re.I)
            assert attributes["rel"] == "noopener noreferrer nofollow" and attributes["target"] == "_blank"


def test_markdown_keeps_what_is_good():
    html = render_markdown(
        "# Title\n\n1. *one*\n\n|a|b|\n|-|-:|\n|1|2|\n\n```python\nx = 1 < 2\n```\n\n`a <b>` ~~no~~ [l](https://example.org)"
    )
    for piece in (
        "<h1>Title</h1>",
        "<em>one</em>",
        '<td class="right">2</td>',
        "<code>a &lt;b&gt;</code>",
        "<s>no</s>",
        'href="https://example.org"',
    ):
        assert piece in html
    assert 'data-language="python"' in html and 'class="c-mi"' in html


# ---------------------------------------------------------------------------------------------------------------------
# The second wall


def test_the_second_wall_holds_alone():
    hostile = (
        '<p class="x" id="send" style="color:red" onclick="alert(1)">a<script>alert(1)</script></p><math href="x">'
    )
    hostile += '<mtext><img src=x onerror="alert(1)"></mtext><annotation-xml><b>c</b></annotation-xml></math>'
    html = sanitize(hostile)
    assert not re.search(r"script|alert|img|style|id=|href|annotation|<b>", html)
    assert html.startswith('<p class="x">a</p><math>')
