"""The report: right figures in the right order, whole whatever the sections hold, and model text is inert."""

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nanochat import report, report_card, report_page
from nanochat.configurator import parse
from nanochat.report_section import Section
from nanochat.score import Score


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


HOSTILE = [
    "<script>alert(1)</script>",
    "</style></textarea><img src=x onerror=alert(1)>",
    '"><a href="javascript:alert(1)">x</a>',
    "```\n</details>\n<b>bold</b>\n````\n# heading",
    "a | b \n| --- | [x](javascript:alert(1)) ![i](http://x/y.png) <!-- `c` *d* -->",
    "<|python_start|><script>1</script><|python_end|><|output_start|>&amp;<i>2</i><|output_end|>",
    "\x00\x1b[31m\ud800\u202e",
    "$x_1^{$ \\frac {%",
]
MACHINE = {"device": "cpu", "processor": "Test CPU", "cores": 2, "commit": "abc1234", "torch": "2.13"}


def write_example():
    """Sections as the scripts write them, in another order; the figures are made up."""
    write = report.write_section
    curve = {"name": "val_bpb", "x_label": "step", "y_label": "bits per byte", "x": [0, 10, 20], "y": [3.0, 2.0, 1.5]}
    scores = [Score("Spelling", 80, 100, 0.0).summary(), Score("Topic", 58, 100, 0.25).summary()]
    samples = [
        {"prompt": "12*34?", "answer": "<|python_start|>12*34<|python_end|><|output_start|>408<|output_end|>It is 408."}
    ]
    write(
        "chat_eval_sft",
        {"title": "Evaluation", "seconds": 30, "scores": scores, "samples": samples, "metrics": {"ChatCORE": 0.62}},
    )
    write("chat_eval_mid", {"scores": [Score("Spelling", 50, 100, 0.0).summary()], "seconds": 10})
    metrics = {"val_bpb": 1.5, "parameters": 11_500_000, "tokens": 2_000_000, "tokens_per_second": 5000.4}
    metrics |= {"mfu": 0.4123, "peak_memory": 3 * 2**30}
    flags = {"depth": 4, "path": Path("x"), "none": None}
    trained = {"seconds": 3600, "machine": MACHINE, "curves": [curve], "settings": flags, "metrics": metrics}
    write("base_train", {"title": "Pretraining", **trained})
    write("base_loss", {"metrics": {"val_bpb": 1.4953}, "seconds": 5})
    write("base_eval", {"metrics": {"CORE": 0.0412}, "scores": [Score("HellaSwag", 30, 100, 0.25).summary()]})
    write("something_else", {"notes": ["A note."]})


def pages():
    markdown, page = report.generate()
    return markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would find: tags, attributes, the text of each element with an id or class."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.data, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in ("meta", "br", "path", "use", "rect", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.data.append(data)


def check_page(text):
    """Well formed, self-contained, without scripts; ids are unique and links lead to them."""
    page = Page(text)
    assert not page.open
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "nav",
        "a",
        "main",
    }
    allowed |= {
        "dl",
        "div",
        "dd",
        "dt",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "small",
        "details",
        "summary",
        "span",
    }
    allowed |= {"b", "i", "svg", "rect", "line", "g", "path", "defs", "use", "text", "clippath", "figure", "figcaption"}
    allowed |= {"code", "samp"}
    assert set(page.tags) <= allowed, set(page.tags) - allowed
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        assert not name.startswith("on") and name != "src"
        if "href" in name:
            assert value[0] == "#" and value[1:] in ids
    assert not re.search(r"url\((?!#)|@import", text)
    return page


# ---------------------------------------------------------------------------------------------------------------------


def test_sections_come_in_the_order_of_the_pipeline():
    write_example()
    names = ["base_train", "base_loss", "base_eval", "chat_eval_mid", "chat_eval_sft", "something_else"]
    assert list(report.read_sections()) == names
    assert report.read_sections()["base_train"]["settings"] == {"depth": 4, "path": "x", "none": None}


def test_summary_table():
    write_example()
    markdown, page = pages()
    low, high = (f"{100 * value:.1f}" for value in (Score("", 58, 100, 0).low, Score("", 58, 100, 0).high))
    topic = "| Topic (which of four topics a text is about; 100 items, chance 25%)"
    for line in (
        "| Metric | BASE | MID | SFT |",  # nothing is known of RL
        "| validation, bits per byte | 1.4953 | – | – |",  # the evaluation's, not the trainer's
        "| CORE | 0.0412 | – | – |",
        f"{topic} | – | – | 58.0% ({low} to {high}) |",
        "| ChatCORE | – | – | 0.6200 |",
        "8 is no idea; less is better. The other figures are the share",
        "python -m scripts.chat_web`",  # with the environment's folder before it if that lies in this one
    ):
        assert line in markdown, line
    assert markdown.index("100 items) | – | 50.0%") < markdown.index("| ChatCORE")
    assert "HellaSwag (" not in markdown and "HellaSwag" in markdown  # a task of CORE is a detail
    words = " ".join(check_page(page).data)
    for text in ("Pretraining", "11,500,000", "41.2%", "3.00 GiB", "5,000", "A note.", "2.00 M", "Test CPU", "abc1234"):
        assert text in words or text.replace("2.00", "2") in words, text


def test_a_stage_that_was_asked_fewer_items_says_so():
    for stage, total in (("mid", 100), ("sft", 200)):
        report.write_section(f"chat_eval_{stage}", {"scores": [Score("Topic", total // 2, total, 0.25).summary()]})
    assert "; 100 or 200 items, chance 25%) |" in pages()[0]


def test_what_the_training_text_has_is_said_once():
    """In a sentence: in each cell and beside each bar it made the table wider than the page."""
    seen, short = [True] + [False] * 9, [False] * 10
    scores = [
        Score("Topic", 8, 10, 0.25, verdicts=[True] * 8 + [False] * 2, seen=seen, checked=10).summary(),
        Score("Spelling", 5, 10, 0.0, verdicts=[True] * 5 + [False] * 5, seen=short, checked=0).summary(),
    ]
    for stage in ("mid", "sft"):
        report.write_section(f"chat_eval_{stage}", {"scores": scores})
    markdown, _ = pages()
    expected = "In the training text: Topic 1 of 10, 77.8% right without. The other questions are too short"
    assert markdown.count("raining text") == 1 and expected in markdown


def test_times_and_costs():
    write_example()
    markdown, _ = pages()
    assert "| Pretraining | 1:00:00 | 2,000,000 | 5,000 | 41.2% | 3.00 GiB | $0.10 |" in markdown  # 2 cores, 5 cents
    assert "| Total | 1:00:45 |" in markdown
    report.write_section("chat_rl", {"seconds": 1800, "metrics": {"cost": 7.5}})
    report.write_section("mid_train", {"seconds": 3600, "machine": {"device": "NVIDIA H100 80GB HBM3", "ranks": 8}})
    markdown, _ = pages()
    assert "| Chat rl | 30:00 | – | – | – | – | $7.50 |" in markdown
    assert (
        "| Mid train | 1:00:00 | – | – | – | – | $24.00 |" in markdown
        and "$3.00 an hour for each of 8 H100" in markdown
    )
    report.generate(hourly_price=10)
    assert "| Mid train | 1:00:00 | – | – | – | – | $10.00 |" in (report.report_dir() / "report.md").read_text()


def test_tool_calls_are_legible():
    write_example()
    markdown, page = pages()
    assert "[12*34 -> 408] It is 408." in markdown
    assert '<span class="tool"><code>12*34</code><samp>408</samp></span>It is 408.' in page
    wrong = {"prompt": "2+2?", "answer": "5", "reference": "<b>4</b>", "correct": False}
    report.write_section("chat_eval_sft", {"samples": [wrong]})
    markdown, page = pages()
    assert "> 2+2?\n5\n(wrong; expected: <b>4</b>)\n```" in markdown
    assert '<i class="wrong">wrong; expected: &lt;b&gt;4&lt;/b&gt;</i>' in page
    assert report_page.tool_text("<|python_start|>1+1<|python_end|> and then nothing") == "[1+1]  and then nothing"


def test_bars_say_what_they_measure():
    write_example()
    page = pages()[1]
    bar = re.search(r'<div class="bar"><span>SFT</span>(.*?)<b>58.0% \(58/100\)</b>', page)[1]
    score = Score("Topic", 58, 100, 0.25)
    assert 'class="fill2" width="58.00%"' in bar and 'class="chance" x1="25.00%"' in bar
    assert f'class="whisker" x1="{score.low:.2%}" x2="{score.high:.2%}"' in bar


def test_a_comparison_is_a_table_and_bars():
    rows = {"Korean": [1.5, 3.0], "broken": [1], "unknown": ["x", None], "code": [None, 2.25]}
    comparison = {"name": "bytes per token", "columns": ["ours\n9 ids", "theirs"], "rows": rows}
    report.write_section("tokenizer_eval", {"comparisons": [comparison, {"rows": 3}, {"columns": ["a"]}]})
    markdown, page = pages()
    assert "| bytes per token | ours (9 ids) | theirs |" in markdown
    assert "| Korean | 1.5 | 3 |" in markdown and "| code | – | 2.25 |" in markdown
    assert "broken" not in markdown and "unknown" not in markdown
    lines = [line for line in markdown.splitlines() if "█" in line]
    assert [(line.split()[0], line.count("█")) for line in lines] == [("ours", 15), ("theirs", 30), ("theirs", 22)]
    assert 'width="50' in page


def test_pictures_show_the_curves():
    write_example()
    page = pages()[1]
    assert page.count("<figure>") == 1 and "validation <b>1.5</b>" in page
    path = re.search(r'<path d="([^"]*)" clip-path[^>]*stroke: var\(--line0\)', page)[1]
    points = [tuple(map(float, point.split())) for point in re.split(r"[ML]", path.replace("\n", "")) if point.strip()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, rel=1e-3) and (y1 - y0) == pytest.approx(2 * (y2 - y1), rel=1e-3)
    curve = report_page.Curve("a", "x", "y", [1.0], [2.0])
    assert report_page.draw("one", [curve]) == report_page.draw("one", [curve])
    assert report_page.sparkline([3, 2, 1]) == "█▅▁" or report_page.sparkline([3, 2, 1]) == "█▄▁"


def test_many_curves_can_be_told_apart():
    """The training loss apart from the tasks' losses, each of these in a colour of its own; noise has a mean in it."""
    noisy = {"name": "training loss", "x": list(range(200)), "y": [1.0 + i % 2 for i in range(200)]}
    losses = [{"name": f"loss Task{i}", "x": [1, 2, 3], "y": [1, 0.5, 10.0**-i]} for i in range(7)]
    curves = [curve | {"x_label": "step", "y_label": "nats a token"} for curve in (noisy, *losses)]
    report.write_section("mid_train", {"title": "Midtraining", "curves": curves})
    markdown, page = pages()
    titles = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert titles == ["Midtraining: training loss", "Midtraining: held-out loss"]
    first, second = page.split("<figure>")[1:3]
    assert len(set(re.findall(r"stroke: var\(--line\d\)", second))) == 7
    assert ">0.001</text>" in second  # the scale is logarithmic
    assert float(re.search("training loss <b>(.*?)</b>", first)[1]) == pytest.approx(1.5, abs=0.1)
    assert "Midtraining: held-out loss, Task6: █" in markdown


def hostile_section():
    text = " ".join(HOSTILE)
    score = {"name": text, "accuracy": 0.5, "low": 0.4, "high": 0.6, "total": 10, "correct": 5, "chance": 0.25}
    return {
        "title": text,
        "seconds": 1,
        "machine": {"device": text, text: text},
        "settings": {text: HOSTILE},
        "metrics": {text: text, "CORE": text},
        "curves": [{"name": text, "x_label": text, "y_label": text, "x": [1, 2], "y": [2, 1]}],
        "samples": [{"prompt": text, "answer": h, "reference": h, "correct": False} for h in HOSTILE],
        "scores": [score],
        "comparisons": [{"name": text, "columns": [text, "b"], "rows": {text: [1.5, None]}}],
        "notes": HOSTILE,
    }


def test_nothing_a_model_wrote_is_alive():
    for name in ("base_train", "chat_eval_sft", "other"):
        report.write_section(name, hostile_section())
    markdown, page = pages()
    words = "".join(check_page(page).data)
    assert "<script>alert(1)</script>" in words and "<i>2</i>" in words
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    flat = [child for token in tokens for child in [token, *(token.children or [])]]
    live = {t.content.strip() for t in flat if t.type in ("html_block", "html_inline")}
    assert all(re.fullmatch(r"</details>|<details><summary>[^<>]*</summary>", piece) for piece in live), live
    assert not [t for t in flat if t.type in ("link_open", "image", "em_open")]
    assert len([t for t in flat if t.type == "heading_open" and t.tag == "h1"]) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(HOSTILE) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = (
    "x",
    "y",
    "name",
    "columns",
    "rows",
    "prompt",
    "answer",
    "accuracy",
    "correct",
    "total",
    "low",
    "high",
    "chance",
    "y_label",
    "verdicts",
    "asked",
)
labels = ("val_bpb", "CORE", "cost", "mfu", "peak_memory", "parameters", "device", "cores", "ranks", "tokens")
entry = st.dictionaries(
    st.sampled_from(keys), json_values | st.lists(st.floats() | st.integers(), max_size=4), max_size=8
)
broken_sections = st.fixed_dictionaries(
    {},
    optional={
        "title": json_values,
        "seconds": json_values,
        "written": json_values,
        **{
            k: json_values | st.dictionaries(st.sampled_from(labels), json_values)
            for k in ("machine", "settings", "metrics")
        },
        **{
            k: json_values | st.lists(entry, max_size=3)
            for k in ("curves", "samples", "scores", "comparisons", "notes")
        },
    },
)
names = st.sampled_from([*report.PIPELINE, "other"])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, broken_sections, max_size=4))
def test_no_section_is_too_broken(sections):
    read = [Section.read(name, section) for name, section in json.loads(json.dumps(sections)).items()]
    blocks = report_card.compose(read, None, time.time())
    report_page.to_markdown("x", blocks).encode("utf-8")
    without_pictures = [block for block in blocks if not isinstance(block, report_page.Curves)]
    check_page(report_page.to_html("x", "y", without_pictures))


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e15, 1e15), st.floats(-1e15, 1e15)), min_size=1, max_size=5),
    st.sampled_from(HOSTILE),
)
def test_any_curve_can_be_drawn(points, label):
    section = Section.read(
        "x", {"curves": [{"x": [p[0] for p in points], "y": [p[1] for p in points], "y_label": label}]}
    )
    for curve in section.curves:
        check_page(f"<svg>{report_page.draw('x', [curve])}</svg>")


def test_a_file_that_is_no_section(base):
    write_example()
    (base / "report" / "mid_train.json").write_text("{broken")
    (base / "report" / "chat_sft.json").write_text("[1]")
    markdown, _ = pages()
    assert "mid_train.json is not a valid JSON file" in markdown and "chat_sft.json holds no JSON object" in markdown


def test_size_of_the_code():
    write_example()
    markdown, _ = pages()
    root = Path(report.__file__).parent.parent
    files = [str(p) for p in (root / "tasks").rglob("*.py")]
    lines = subprocess.run(["wc", "-l", *files], capture_output=True, text=True).stdout.split()[-2]
    assert f"| tasks/ | {len(files)} | {int(lines):,} |" in markdown
    assert "a quarter of the characters" in markdown and "torch, numpy" in markdown


def test_command_line(base, tmp_path, capsys):
    with pytest.raises(SystemExit, match="quickstart.sh"):
        report.main(parse(report.Config, []))
    write_example()
    command = [sys.executable, "-W", "error", "-m", "nanochat.report", "generate", "--here"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert str(base / "report" / "report.html") in run.stdout
    assert (tmp_path / "report.md").read_bytes() == (base / "report" / "report.md").read_bytes()
    report.main(parse(report.Config, ["reset"]))
    assert report.read_sections() == {} and not (base / "report" / "report.html").exists()
    assert "Began a new report" in capsys.readouterr().out


def test_the_clock_starts_with_reset(base):
    report.reset()
    (base / "report" / "started").write_text(str(time.time() - 125))
    write_example()
    assert "- from start to end: **2:05**" in pages()[0]
