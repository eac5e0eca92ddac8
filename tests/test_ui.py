"""The pages in a real browser: every control, on a desktop and on a phone, by keyboard, under the rules of axe, and
what a hostile model can do (nothing)."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from serving import ScriptedEngine, byte_tokenizer, say, serve, serve_app, words

from nanochat.common import MetricsLog
from nanochat.engine import Delta, Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.markdown import sanitize
from nanochat.pages import create_waiting_app
from nanochat.server import Settings

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install axe-playwright-python")
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
expect = sync_api.expect
expect.set_options(timeout=30_000)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
           --disable-component-update --disable-sync""".split()
DESKTOP = {"viewport": {"width": 1200, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
ATTACKS = Path(__file__).with_name("attacks.txt").read_text(encoding="utf-8").split("\n%%\n")

if BROWSER is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)

both_sizes = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
both_schemes = pytest.mark.parametrize("scheme", ["light", "dark"])

MARKDOWN = """Some code:

```python
def f(x):
    return x + 1
```

| a | b |
|---|--:|
| 1 | 2 |

The area is $\\pi r^2$, and

$$
\\frac{a}{b}
$$

That is **all**."""


def is_open(attack: str) -> bool:
    """Whether it begins something that would swallow whatever is said after it."""
    return "```" in attack and attack.count("```") % 2 == 1 or attack.count("$$") % 2 == 1 or attack.startswith(r"\[ ")


CLOSED = [attack for attack in ATTACKS if not is_open(attack)]
OPEN = [attack for attack in ATTACKS if is_open(attack)]


def script(prompt: str) -> list[Delta]:
    """Looks at the end of what the model would read."""
    asked = prompt[-200:]
    if "slow" in asked:
        return words("slowly " * 3000)
    if "Moon" in asked:
        return [Delta("look up the Moon", "python"), Delta("The Moon is " + "far " * 30, "python_output"), *say("Far.")]
    if "program" in asked:
        code = "for n in range(3):\n    print(n, n**2)"
        return [*say("See: "), Delta(code, "python"), Delta("0 0\n1 1\n2 4", "python_output"), *say("Squares.")]
    if "1234" in asked:
        tool = [Delta("1234 * 56", "python"), Delta("69104", "python_output")]
        return [*say("I ", "count: "), *tool, *say("it is ", "**69104**.")]
    if "code" in asked:
        return words(MARKDOWN)
    if "open attack" in asked:
        return pieces(OPEN[int(prompt.rsplit(" ", 1)[-1])])
    if "attack" in asked:
        return pieces("\n\n".join(CLOSED))
    return words("You said: " + prompt.rsplit("\n", 1)[-1][-60:])


def pieces(text: str) -> list[Delta]:
    """Cut where no word ends: tags, entities and links arrive in halves."""
    sizes = [1, 13, 4, 29, 7, 2, 40, 11]
    found, place = [], 0
    while place < len(text):
        size = sizes[len(found) % len(sizes)]
        found.append(Delta(text[place : place + size]))
        place += size
    return found


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine(byte_tokenizer(), script, pace=0.006, max_context=20_000)


@pytest.fixture(scope="module")
def server(engine):
    with serve(
        engine, engine.tokenizer, Settings(model_name="nanochat-test", about={"parameters": "7M parameters"})
    ) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def watch():
    """Whatever a page should never do: log an error, throw, open a dialog, or ask another host for something."""
    return []


@pytest.fixture
def open_page(browser, server, watch):
    contexts = []

    def open_page(url=server, **options):
        context = browser.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: watch.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: watch.append(str(error)))
        page.on("dialog", lambda dialog: (watch.append("dialog"), dialog.dismiss()))
        home = url.removesuffix("/training")
        page.on("request", lambda one: None if one.url.startswith((home, "blob:" + home)) else watch.append(one.url))
        page.goto(url)
        if url == home:
            expect(page.locator("#prompt")).to_be_focused()
        return page

    yield open_page
    for context in contexts:
        context.close()


def ask(page, text: str):
    """Send a message; the answer's list item when it is complete."""
    before = page.locator(".answer").count()
    page.fill("#prompt", text)
    page.get_by_role("button", name="Send", exact=True).click()
    answer = page.locator(".answer").nth(before)
    expect(answer.locator(".answer-foot .tools")).to_be_visible()
    return answer


def show_sidebar(page) -> None:
    """On a phone the list of chats is behind a button."""
    button = page.get_by_role("button", name="Show the list of chats")
    if button.is_visible() and not page.locator("#sidebar:popover-open").count():
        button.click()


def fits(page) -> bool:
    """Nothing is wider than the screen."""
    return page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) <= innerWidth")


@both_sizes
def test_an_answer_streams_and_stays(open_page, size, watch):
    page = open_page(**size)
    expect(page.get_by_role("list", name="Things to try").get_by_role("button")).to_have_count(4)
    expect(page.locator("#model")).to_have_text("nanochat-test · 7M parameters")
    page.get_by_role("button", name="Who are you?").click()
    expect(page.locator("#empty")).to_be_hidden()
    answer = page.locator(".answer")
    expect(answer.locator(".body")).to_contain_text("You said: Who are you?")
    expect(answer.locator(".rate")).to_contain_text("tokens/s")
    expect(page.locator("#status")).to_contain_text(
        "You said: Who are you?"
    )  # for a screen reader, once, when complete
    ask(page, "And <b>now</b>?")
    show_sidebar(page)
    page.get_by_role("button", name="New chat").click()
    ask(page, "A question whose title is longer than the width of any phone that we have seen")
    assert page.evaluate("innerWidth") == size["viewport"]["width"]  # a phone zooms out if anything is too wide
    assert page.evaluate("document.documentElement.scrollHeight") == size["viewport"]["height"]
    show_sidebar(page)
    page.locator(".chat-open").last.click()
    assert page.locator(".bubble").nth(1).inner_text() == "And <b>now</b>?"
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    show_sidebar(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#empty")).to_be_visible()
    show_sidebar(page)
    page.locator(".chat-open").last.click()
    expect(page.locator(".message")).to_have_count(4)
    assert fits(page) and not watch


@both_sizes
def test_it_streams_while_the_model_writes_and_can_be_stopped(open_page, engine, size, watch):
    page = open_page(**size)
    page.fill("#prompt", "slow")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator(".answer .body")).to_contain_text("slowly slowly")
    expect(page.locator(".answer .rate")).to_contain_text("tokens/s")
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".answer .note")).to_have_text("This answer was stopped. Go on")
    page.wait_for_timeout(300)  # for the last rendering
    length = len(page.locator(".answer .body").inner_text())
    page.wait_for_timeout(300)
    assert len(page.locator(".answer .body").inner_text()) == length and not engine.has_work
    page.fill("#prompt", "slow")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator(".answer").nth(1).locator(".body")).to_contain_text("slowly")
    page.keyboard.press("Escape")
    expect(page.locator(".answer .note")).to_have_count(2)
    assert not watch


@both_sizes
def test_a_tool_call_is_a_card(open_page, engine, size, watch):
    page = open_page(**size)
    answer = ask(page, "What is 1234 * 56?")
    card = answer.get_by_role("group", name="Calculator")
    assert " ".join(card.inner_text().split()) == "1234 * 56 → 69104"
    assert answer.locator("strong").inner_text() == "69104"
    ask(page, "thanks")
    assert "1234 * 5669104it is" in engine.asked.text  # the model reads its call and the result again
    program = ask(page, "a program").get_by_role("group", name="Python")
    assert program.locator(".tool-code").inner_text() == "for n in range(3):\n    print(n, n**2)"
    assert program.locator(".tool-output").inner_text() == "0 0\n1 1\n2 4"
    found = ask(page, "What is the Moon?").get_by_role("group", name="Encyclopedia")
    assert found.locator(".tool-code").inner_text() == "look up the Moon"
    assert found.evaluate("card => card.scrollWidth <= card.clientWidth"), "sentences are wrapped, not cut off"
    assert fits(page) and not watch


@both_sizes
def test_markdown_code_mathematics_and_copying(open_page, size, watch):
    page = open_page(permissions=["clipboard-read", "clipboard-write"], **size)
    answer = ask(page, "code")
    expect(answer.locator("figure.code figcaption span")).to_have_text("python")
    expect(answer.locator(".c-k").first).to_have_text("def")
    expect(answer.locator("td.right")).to_have_text("2")
    expect(answer.locator("math")).to_have_count(2)
    over, under = answer.locator("math[display=block] mfrac > *").all()
    assert over.bounding_box()["y"] + 5 < under.bounding_box()["y"]  # the browser really draws a fraction
    answer.get_by_role("button", name="Copy the code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "def f(x):\n    return x + 1\n"
    answer.get_by_role("button", name="Copy this answer").click()
    expect(page.locator("#status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()").startswith("Some code:\n\n```python")
    assert fits(page) and not watch


def test_what_has_been_shown_stays_while_more_is_written(open_page, watch):
    """Neither flicker (a block never turns into another) nor jumps (nothing moves that was not asked to)."""
    page = open_page()
    page.evaluate(
        """() => {
            window.shift = 0;
            window.seen = [];
            new PerformanceObserver((list) => list.getEntries().forEach((one) => (window.shift += one.value)))
                .observe({ type: "layout-shift", buffered: true });
            new MutationObserver((changes) => changes.forEach((change) => change.addedNodes.forEach((node) => {
                if (node.parentElement?.closest(".answer .markdown") === node.parentElement) seen.push(node.nodeName);
            }))).observe(document.querySelector("#thread"), { childList: true, subtree: true });
        }"""
    )
    answer = ask(page, "code")
    expect(answer.locator(".markdown > *")).to_have_count(6)
    tags = [tag for tag in page.evaluate("seen") if tag != "#text"]
    order = ["P", "FIGURE", "DIV", "P", "P", "P"]
    groups = [tag for place, tag in enumerate(tags) if place == 0 or tags[place - 1] != tag]
    assert groups == ["P", "FIGURE", "DIV", "P"], (tags, order)  # each kind once, in order: nothing turns into another
    assert page.evaluate("shift") < 0.05


@both_sizes
def test_answer_again_edit_and_go_back(open_page, size, watch):
    page = open_page(**size)
    answer = ask(page, "first")
    answer.get_by_role("button", name="Answer again").click()
    expect(answer.locator(".pager-count")).to_have_text("2/2")
    answer.get_by_role("button", name="Previous version").click()
    expect(answer.locator(".pager-count")).to_have_text("1/2")
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit this message").click()
    area = page.get_by_role("textbox", name="Edit your message")
    assert area.input_value() == "first"
    area.press("Escape")
    page.get_by_role("button", name="Edit this message").click()
    area.fill("second")
    area.press("Enter")
    expect(page.locator(".answer .body")).to_contain_text("You said: second")
    expect(page.locator(".user .pager-count")).to_have_text("2/2")
    page.locator(".user").get_by_role("button", name="Previous version").click()
    expect(page.locator(".answer .body")).to_contain_text("You said: first")
    assert not watch


@both_sizes
def test_the_list_of_chats(open_page, size, tmp_path, watch):
    page = open_page(**size)
    ask(page, "about whales")
    show_sidebar(page)
    page.get_by_role("button", name="New chat").click()
    ask(page, "about tea")
    show_sidebar(page)
    names = page.locator(".chat-open")
    expect(names).to_have_text(["about tea", "about whales"])
    page.get_by_role("button", name="Rename about tea").click()
    page.get_by_role("textbox", name="Name of the chat").fill("Oolong")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["Oolong", "about whales"])
    page.get_by_role("searchbox").fill("WHALES")
    expect(names).to_have_text(["about whales"])
    page.get_by_role("searchbox").fill("")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    assert len(json.loads(file.read_text())["chats"]) == 2
    page.locator(".chat").first.hover()
    page.get_by_role("button", name="Delete Oolong").click()
    expect(names).to_have_text(["about whales"])
    page.get_by_role("button", name="Undo").click()
    expect(names).to_have_count(2)
    show_sidebar(page)
    page.get_by_role("button", name="Delete Oolong").click()
    page.reload()
    expect(names).to_have_text(["about whales"])
    page.set_input_files("#import-file", file)
    expect(names).to_have_text(["Oolong", "about whales"])
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"format": "nanochat-chats", "chats": [{"version": 1, "id": "../x", "nodes": []}]}))
    page.set_input_files("#import-file", bad)
    expect(page.get_by_role("alert")).to_have_text("That file is not an export of nanochat.")
    assert not watch


@both_sizes
def test_settings_reach_the_model_and_stay(open_page, engine, size, watch):
    page = open_page(color_scheme="light", **size)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("Top-k").fill("7")
    page.get_by_label("Seed").fill("42")
    page.get_by_label("Max tokens").fill("3")
    page.get_by_label("Instructions").fill("Be brief.")
    background = "getComputedStyle(document.body).backgroundColor"
    bright = page.evaluate(background)
    page.get_by_label("Colours").select_option("dark")
    assert page.evaluate(background) != bright
    page.get_by_role("button", name="Done").click()
    answer = ask(page, "hello")
    sampling = engine.asked.sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.3, 42, 3)
    assert (sampling.top_k, sampling.top_p) == (7, 0.9)
    assert engine.asked.text.startswith("Be brief.")
    expect(answer.locator(".body")).to_have_text("You said: hello")
    page.reload()
    assert page.evaluate(background) != bright
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Seed")).to_have_value("42")
    assert fits(page)
    page.get_by_role("button", name="Use the defaults").click()
    assert page.evaluate(background) == bright
    expect(page.get_by_label("Seed")).to_have_value("")
    expect(page.get_by_label("Temperature")).to_have_value("0.8")
    page.get_by_label("Max tokens").fill("20001")  # more than the context: not taken, but nobody is locked in
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    ask(page, "hello")
    assert engine.asked.sampling.max_tokens == 1024
    assert not watch


@both_sizes
def test_errors_are_readable_and_can_be_retried(open_page, server, size):
    page = open_page(**size)
    send = page.get_by_role("button", name="Send", exact=True)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#prompt", "hello")
    send.click()
    alert = page.locator(".problem")
    expect(alert).to_contain_text("cannot be reached")
    page.unroute("**/v1/chat/completions")
    busy = json.dumps({"error": {"message": "The server is busy."}})
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=429, body=busy, headers={"Retry-After": "3"})
    )
    page.get_by_role("button", name="Try again").click()
    expect(alert).to_contain_text("The server is busy. Try again in 3 s.")
    page.unroute("**/v1/chat/completions")
    cut = 'data: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\n\n'
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=200, body=cut, content_type="text/event-stream")
    )
    page.get_by_role("button", name="Try again").click()
    expect(alert).to_contain_text("lost before the answer was complete")
    expect(page.locator(".answer .body")).to_have_text("half")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .body")).to_have_text("You said: hello")
    expect(page.locator(".message")).to_have_count(2)
    page.fill("#prompt", "word " * 5000)
    send.click()
    expect(alert).to_contain_text("20000")  # the context, in the server's words
    page.get_by_role("button", name="Edit the message").click()
    page.get_by_role("textbox", name="Edit your message").fill("short")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .body").last).to_contain_text("short")


@both_sizes
def test_a_long_conversation_goes_on_without_its_beginning(open_page, engine, size, watch):
    page = open_page(**size)
    for letter in "abc":
        ask(page, f"{letter} " * 3000)
    line = page.locator(".horizon")
    expect(line).to_contain_text("no longer sees what is above: its context holds 20000 tokens")
    assert line.evaluate("(line) => line.nextElementSibling.querySelector('.bubble').textContent").startswith("b b")
    assert "a a a" not in engine.asked.text and "b b b" in engine.asked.text
    page.reload()
    expect(line).to_have_count(1)
    assert fits(page) and not watch


def test_what_was_said_outlives_a_reload(open_page, watch):
    page = open_page()
    page.fill("#prompt", "slow")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .body")).to_contain_text("slowly slowly slowly")
    page.fill("#prompt", "a message that is not sent yet")
    page.reload()
    expect(page.locator(".answer .body")).to_contain_text("slowly slowly slowly")
    expect(page.locator(".answer .note")).to_have_text("This answer was stopped. Go on")
    expect(page.locator("#prompt")).to_have_value("a message that is not sent yet")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled()
    assert not watch


def test_going_back_goes_to_the_chat_before(open_page, watch):
    page = open_page()
    ask(page, "about whales")
    page.get_by_role("button", name="New chat").click()
    ask(page, "about tea")
    page.locator(".chat-open", has_text="whales").click()
    title = page.get_by_role("heading", level=1)
    expect(title).to_have_text("about whales")
    page.go_back()
    expect(title).to_have_text("about tea")
    page.go_back()
    expect(title).to_have_text("about whales")
    page.go_forward()
    expect(title).to_have_text("about tea")
    page.get_by_role("button", name="Delete about tea").click()
    expect(title).to_have_text("New chat")
    page.go_back()
    expect(title).to_have_text("New chat")  # what was deleted does not come back
    assert page.url.endswith("/") and not watch


def test_two_tabs_lose_nothing_of_one_chat(open_page, watch):
    page = open_page()
    ask(page, "hello")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".message")).to_have_count(2)
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit this message").click()
    area = page.get_by_role("textbox", name="Edit your message")
    area.fill("hello again")
    ask(other, "and in the other tab")
    expect(area).to_have_value("hello again")  # a change elsewhere takes nothing away that is being written here
    area.press("Enter")
    expect(page.locator(".answer .body")).to_have_text("You said: hello again")
    expect(other.locator(".user .pager-count")).to_have_text("2/2")
    other.fill("#prompt", "slow")  # both at the same time
    other.keyboard.press("Enter")
    expect(other.locator(".answer .body").last).to_contain_text("slowly")
    page.locator(".user").get_by_role("button", name="Previous version").click()
    ask(page, "first tab")
    other.get_by_role("button", name="Stop the answer").click()
    expect(other.locator(".answer .note")).to_be_visible()
    for tab in (page, other):
        tab.reload()
        tab.locator(".chat-open").click()
        chats = tab.evaluate("Object.values(localStorage).filter((text) => text.includes('nodes')).map(JSON.parse)")
        said = {node["id"]: "".join(part["text"] for part in node["parts"]) for node in chats[0]["nodes"]}
        asked = [said[node["id"]] for node in chats[0]["nodes"] if node["role"] == "user"]
        assert sorted(asked) == ["and in the other tab", "first tab", "hello", "hello again", "slow"]
        assert len(said) == 2 * len(asked) and all(said.values())
    assert not watch


def test_text_runs_in_its_own_direction(open_page, watch):
    page = open_page(**PHONE)
    answer = ask(page, "שלום עולם")
    sides = """(element) => {
        const range = document.createRange();
        range.selectNodeContents(element);
        const [text, box] = [range.getBoundingClientRect(), element.getBoundingClientRect()];
        return [text.left - box.left, box.right - text.right];
    }"""
    assert page.locator("#prompt").evaluate("(e) => (e.value = 'שלום', getComputedStyle(e).direction)") == "rtl"
    assert page.locator(".bubble").evaluate("(e) => getComputedStyle(e).direction") == "rtl"
    left, right = answer.locator(".markdown p").evaluate(sides)  # "You said:" leads, so it begins on the left
    assert left < 1 < right
    page.evaluate("document.querySelector('.markdown p').textContent = 'עולם'")
    left, right = answer.locator(".markdown p").evaluate(sides)
    assert right < 1 < left
    assert not watch


def test_a_server_that_was_away_is_found_again(open_page, server):
    page = open_page()
    page.route("**/v1/**", lambda route: route.abort())
    page.fill("#prompt", "hello")
    page.keyboard.press("Enter")
    expect(page.locator(".problem")).to_contain_text("cannot be reached")
    expect(page.locator("#model")).to_have_text("not connected")
    page.reload()
    expect(page.locator(".problem")).to_contain_text("cannot be reached")
    page.unroute("**/v1/**")
    expect(page.locator("#model")).to_have_text("nanochat-test · 7M parameters")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .body")).to_have_text("You said: hello")
    expect(page.locator(".pager")).to_have_count(0)  # an attempt without a word is no version of the answer


def test_two_chats_are_answered_at_once(open_page, watch):
    page = open_page()
    page.fill("#prompt", "slow")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .body")).to_contain_text("slowly")
    page.keyboard.press("Control+Shift+O")
    expect(ask(page, "hello").locator(".body")).to_have_text("You said: hello")
    page.locator(".chat-open", has_text="slow").click()
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".answer .note")).to_contain_text("This answer was stopped.")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".answer .body")).to_contain_text("slowly")
    page.locator(".chat", has_text="slow").get_by_role("button", name="Delete slow").click()  # which also stops it
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".answer .note")).to_contain_text("This answer was stopped.")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".answer .body")).to_contain_text("slowly")
    page.locator(".chat", has_text="slow").get_by_role("button", name="Delete slow").click()
    ask(page, "hello")
    page.reload()
    expect(page.locator(".chat-open")).to_have_text(["hello", "hello"])
    assert not watch


def test_a_key_is_asked_for(browser, engine):
    with serve(engine, engine.tokenizer, Settings(api_key="sesame")) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#toast")).to_contain_text("asks for an API key")
        page.locator("#toast").get_by_role("button").click()
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Done").click()
        expect(ask(page, "hello").locator(".body")).to_contain_text("You said: hello")
        page.close()


def harmless(page, selector: str) -> bool:
    """Whether all that is there is text, marks of text, and links to the web and to mail."""
    return page.evaluate(
        """(selector) => [...document.querySelectorAll(`${selector} *`)].every((e) => e.closest("figcaption button") ||
            !/^(script|style|img|iframe|object|embed|form|input|link|meta|base|video|audio|svg|template)$/i.test(e.tagName)
            && e.getAttributeNames().every((name) => !/^(on|style$|src|srcdoc|ping|action|xlink)/i.test(name))
            && (!e.href || /^(https?|mailto):/.test(e.href)))""",
        selector,
    )


def test_nothing_that_a_model_writes_acts_on_the_page(open_page, watch):
    """All attacks, streamed as one answer, and those that swallow what follows as answers of their own."""
    assert len(ATTACKS) > 100 and len(OPEN) > 3
    page = open_page()
    answer = ask(page, "attack")
    expect(answer.locator("figure").first).to_be_visible()
    for number in range(len(OPEN)):
        ask(page, f"open attack {number}")
    expect(page.locator(".answer .body > .plain")).to_have_count(0)  # everything has been through the renderer
    assert harmless(page, ".body")
    assert not watch  # no dialog, no request elsewhere, no complaint of the Content-Security-Policy


def test_no_half_of_an_attack_acts_either(open_page, watch):
    """Each attack alone, whole and cut at five places, as a finished answer and as one that is being written; then the
    bare attacks through the second wall alone, as if the first had fallen."""
    page = open_page()
    cuts = [attack[: math.ceil(len(attack) * part / 6)] for attack in ATTACKS for part in range(1, 7)]
    walls = [sanitize(attack) for attack in ATTACKS]
    page.evaluate(
        """async ([texts, walls]) => {
            const { renderMarkdown } = await import("/ui/api.js");
            const { element, showMarkdown } = await import("/ui/view.js");
            const place = element("div", { id: "attacked" });
            document.body.append(place);
            const show = (html) => place.append(element("div", {})) || showMarkdown(place.lastChild, html);
            for (let at = 0; at < texts.length; at += 100) {
                (await renderMarkdown(texts.slice(at, at + 100), false)).forEach(show);
            }
            await Promise.all(texts.map(async (text) => show((await renderMarkdown([text], true))[0])));
            walls.forEach(show);
        }""",
        [cuts, walls],
    )
    assert page.locator("#attacked > div").count() == 2 * len(cuts) + len(walls)
    page.wait_for_timeout(200)
    assert harmless(page, "#attacked")
    assert not watch


def test_events_survive_any_cut(open_page, server):
    page = open_page()
    cuts = page.evaluate(
        """async () => {
            const { readEvents } = await import("/ui/api.js");
            const text = 'data: {"t": "né🙂"}\\r\\n\\r\\n: ping\\n\\ndata: {"t": "b"}\\n\\ndata: [DONE]\\n\\n';
            const source = new TextEncoder().encode(text);
            const cut = async function* (size) {
                for (let i = 0; i < source.length; i += size) yield source.slice(i, i + size);
            };
            const bad = [];
            for (let size = 1; size <= source.length; size++) {
                const found = [];
                for await (const event of readEvents(cut(size))) found.push(event.t);
                if (found.join() !== "né🙂,b") bad.push(size);
            }
            return bad;
        }"""
    )
    assert cuts == []


@both_schemes
def test_a_phone(open_page, watch, scheme):
    page = open_page(**PHONE, color_scheme=scheme)
    page.get_by_role("button", name="What is 1234 * 56?").tap()
    expect(page.locator(".answer .tools")).to_be_visible()
    assert page.evaluate("document.querySelector('#scroll').scrollWidth <= 360")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Show the list of chats").tap()
    expect(page.locator("#sidebar")).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.get_by_role("button", name="Show the list of chats")).to_be_focused()
    assert fits(page) and not watch


def contrast(page, selector: str) -> float:
    """WCAG's ratio between an element's text and what is behind it."""
    page.wait_for_selector(selector)
    return page.evaluate(
        """(selector) => {
            const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
            const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            const light = ([r, g, b]) =>
                0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
            const background = (element) => rgb(getComputedStyle(element).backgroundColor);
            const element = document.querySelector(selector);
            let back = element;
            while (back !== document.body && (background(back)[3] ?? 1) < 1) back = back.parentElement;
            const pair = [light(rgb(getComputedStyle(element).color)), light(background(back))];
            return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        }""",
        selector,
    )


def complaints(page) -> list[str]:
    """What axe finds that is serious or critical: missing names, low contrast, wrong roles, traps."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['html'][:90] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@both_schemes
@both_sizes
def test_everything_can_be_read_and_has_a_name(open_page, scheme, size, watch):
    page = open_page(color_scheme=scheme, **size, bypass_csp=True)  # axe is a script that the page does not know
    assert complaints(page) == []
    ask(page, "code")
    ask(page, "What is 1234 * 56?")
    assert complaints(page) == []
    for selector in ".bubble|.markdown p|.rate|.hint|.c-k|.c-mi|.code figcaption span".split("|"):
        assert contrast(page, selector) >= 4.5, selector
    show_sidebar(page)
    assert complaints(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    assert complaints(page) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert not watch


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    page.locator(".brand").click()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("link", name="Skip to the message box")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .tools")).to_be_visible()
    assert page.locator(".bubble").inner_text() == "one\ntwo"
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Tokens and their probabilities")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Answer again")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".pager-count")).to_have_text("2/2")


def tab_to(page, target, key: str = "Enter") -> None:
    """By Tab alone, as somebody does who has no mouse; then press the key there."""
    for _ in range(60):
        if target.evaluate("(element) => element === document.activeElement"):
            return page.keyboard.press(key)
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {target}")


def test_every_control_works_by_keyboard_alone(open_page, engine, tmp_path, watch):
    page = open_page(permissions=["clipboard-read", "clipboard-write"], color_scheme="light")
    named = lambda name: page.get_by_role("button", name=name, exact=True)  # noqa: E731
    tab_to(page, named("Who are you?"))
    expect(page.locator(".answer .tools")).to_be_visible()
    tab_to(page, page.locator("#prompt"), "s")
    page.keyboard.type("low")
    tab_to(page, named("Send"))
    expect(page.locator(".answer").nth(1).locator(".body")).to_contain_text("slowly")
    tab_to(page, named("Stop the answer"))
    expect(page.locator(".note")).to_contain_text("This answer was stopped.")
    tab_to(page, named("Copy this answer").first)
    expect(page.locator("#status")).to_have_text("Copied.")
    tab_to(page, named("Edit this message").first)
    page.keyboard.press("Control+a")
    page.keyboard.type("code")
    tab_to(page, page.locator(".editor").get_by_role("button", name="Send"))
    expect(page.locator("figure.code")).to_be_visible()
    expect(page.locator(".answer .tools")).to_be_visible()
    tab_to(page, named("Copy the code"))
    assert page.evaluate("navigator.clipboard.readText()").startswith("def f(x)")
    tab_to(page, page.locator(".answer").get_by_role("button", name="Answer again"))
    expect(page.locator(".answer .pager-count")).to_have_text("2/2")
    tab_to(page, page.locator(".answer").get_by_role("button", name="Previous version"))
    expect(page.locator(".answer .pager-count")).to_have_text("1/2")
    tab_to(page, page.locator(".user").get_by_role("button", name="Previous version"))
    expect(page.locator(".bubble").first).to_have_text("Who are you?")

    tab_to(page, named("Settings"))
    tab_to(page, page.get_by_label("Temperature"), "Home")
    tab_to(page, page.get_by_label("Seed"), "7")
    tab_to(page, page.get_by_label("Colours"), "ArrowDown")
    tab_to(page, named("Done"))
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(named("Settings")).to_be_focused()
    tab_to(page, page.get_by_role("searchbox"), "z")
    expect(page.locator("#no-chats")).to_have_text("No chat has these words.")
    page.keyboard.press("Backspace")
    tab_to(page, named("New chat"))
    expect(page.locator("#empty")).to_be_visible()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .tools")).to_be_visible()
    assert (engine.asked.sampling.temperature, engine.asked.sampling.seed) == (0, 7)
    tab_to(page, named("Rename hello"))
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    expect(page.locator(".chat-open").first).to_have_text("Hi")
    tab_to(page, page.locator(".chat-open").nth(1))
    expect(page.locator(".bubble").first).to_have_text("Who are you?")
    with page.expect_download() as download:
        tab_to(page, named("Export"))
    download.value.save_as(tmp_path / "chats.json")
    tab_to(page, page.locator("[aria-label='Delete Hi']"))  # only seen when its chat has the focus
    expect(page.locator(".chat-open")).to_have_count(1)
    tab_to(page, named("Undo"))
    expect(page.locator(".chat-open")).to_have_count(2)
    with page.expect_file_chooser() as chooser:
        tab_to(page, named("Import"))
    chooser.value.set_files(tmp_path / "chats.json")
    tab_to(page, page.get_by_role("link", name="Training"))
    expect(page).to_have_url(re.compile("/training$"))
    assert not watch


# ---------------------------------------------------------------------------------------------------------------------
# Tokens, with a real model


@pytest.fixture(scope="module")
def real(tiny_tokenizer):
    config = GPTConfig(tiny_tokenizer.vocab_size, sequence_len=512, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    engine = Engine(GPT(config).init_weights(torch.Generator().manual_seed(0)).eval(), tiny_tokenizer, max_batch=2)
    with serve(engine, tiny_tokenizer, Settings(defaults={"temperature": 1.0, "max_tokens": 30})) as url:
        yield url


def long_answer(page):
    """An answer of 30 tokens of text, in a new chat: a random model may also stop at once, or call a tool."""
    for _ in range(8):
        answer = ask(page, "What is the Moon?")
        if answer.locator(".rate").inner_text().startswith("30 tokens") and not answer.locator(".tool").count():
            return answer
        page.goto(page.url.split("#")[0])
        expect(page.locator("#prompt")).to_be_focused()
    raise AssertionError("no answer has its 30 tokens")


@both_sizes
def test_another_token_can_be_chosen(open_page, real, size, watch):
    page = open_page(real, **size)
    answer = long_answer(page)
    text = answer.locator(".body").inner_text()
    page.reload()  # the probabilities are asked for when they are wanted, also of an old answer
    answer.get_by_role("button", name="Tokens and their probabilities").click()
    tokens = answer.locator(".token")
    expect(tokens).not_to_have_count(0)
    shown = "".join(tokens.all_text_contents()).replace("↵", "")
    squeeze = lambda text: "".join(text.split())  # noqa: E731
    assert "‹" in shown or squeeze(text)[:20] in squeeze(shown)
    expect(answer.locator(".perplexity")).to_contain_text("perplexity")
    tokens.nth(5).click()
    popover = page.get_by_role("dialog")
    others = popover.get_by_role("listitem")
    assert 2 <= others.count() <= 9  # the likeliest eight, less special tokens, and the one that was said
    assert popover.locator("[aria-current]").count() == 1
    expect(popover.locator("[aria-current]")).to_be_focused()
    chances = [float(text.strip("<%")) for text in popover.locator(".percent").all_text_contents()]
    assert chances == sorted(chances, reverse=True)
    assert fits(page)
    other = popover.locator(".alternative:not([aria-current])").first
    name = other.locator("code").text_content().replace("␣", " ").replace("↵", "\n").replace("⇥", "\t")
    before = tokens.all_text_contents()[:5]
    other.click()
    expect(answer.locator(".pager-count")).to_have_text("2/2")
    expect(answer.locator(".token").nth(5)).to_be_visible()  # the new answer shows its tokens too
    after = answer.locator(".token").all_text_contents()
    assert after[:5] == before and after[5].replace("↵", "") == name
    answer.get_by_role("button", name="Previous version").click()
    expect(answer.locator(".pager-count")).to_have_text("1/2")
    assert not watch


@both_schemes
@both_sizes
def test_tokens_by_keyboard_and_under_the_rules_of_axe(open_page, real, scheme, size, watch):
    page = open_page(real, color_scheme=scheme, **size, bypass_csp=True)
    long_answer(page)
    page.get_by_role("button", name="Tokens and their probabilities").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".token").first).to_be_focused()
    assert complaints(page) == []
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token").nth(2)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert complaints(page) == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".token").nth(2)).to_be_focused()
    page.keyboard.press("Enter")
    page.locator(".alternative[aria-current]").press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".pager-count")).to_have_text("2/2")
    assert not watch


def test_an_answer_that_was_cut_goes_on(open_page, real, watch):
    page = open_page(real)
    answer = long_answer(page)
    expect(answer.locator(".note")).to_contain_text("cut off at its limit")
    text = answer.locator(".body").inner_text()
    answer.get_by_role("button", name="Go on").click()
    expect(answer.locator(".pager-count")).to_have_text("2/2")
    expect(answer.locator(".plain")).to_have_count(0)
    longer = answer.locator(".body").inner_text()
    assert len(longer) > len(text) and longer.startswith(text[:20])
    assert not watch


# ---------------------------------------------------------------------------------------------------------------------
# A model in training


def some_run(folder: Path, name: str, steps: int) -> MetricsLog:
    log = MetricsLog(folder / "logs" / f"{name}.jsonl")
    for step in range(1, steps + 1):
        log.log(step, loss=8 / step**0.3, multiplier=1.0, seconds=0.5 * step, tokens=2048 * step, progress=step / 200)
        if step % 20 == 0:
            samples = [{"prompt": "The Moon is", "text": f" <b>sample</b> {step}"}]
            log.log(step, val_bpb=3 - step / 100, samples=samples)
    return log


@both_schemes
@both_sizes
def test_a_run_is_watched_while_it_goes_on(open_page, server, base_dir, scheme, size, watch):
    some_run(base_dir, "sft-d4", 30)
    log = some_run(base_dir, "base-d4", 80)  # written last, so shown first
    page = open_page(server + "/training", color_scheme=scheme, **size, bypass_csp=True)
    expect(page.get_by_role("heading", level=1)).to_have_text("Pretraining · d4")
    expect(page.locator("#state")).to_have_text("Live")
    expect(page.locator(".tiles")).to_contain_text("Step80")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "40")
    chart = page.get_by_role("img", name="Loss by step")
    expect(chart).to_be_visible()
    expect(page.locator(".sample")).to_have_text("The Moon is <b>sample</b> 80")
    assert complaints(page) == [] and fits(page)
    log.log(81, loss=1.25, multiplier=1.0, seconds=40.0, tokens=2048 * 81, progress=1.0)
    expect(page.locator(".tiles")).to_contain_text("Step81")  # by itself
    expect(page.locator("#state")).to_have_text("Finished")
    page.get_by_role("slider", name="Moment of the run").fill("0")
    expect(page.locator(".sample")).to_contain_text("sample</b> 20")
    chart.focus()
    page.keyboard.press("Home")
    expect(page.locator(".legend").first).to_contain_text("step 1")
    page.get_by_role("combobox").select_option("sft-d4")
    expect(page.get_by_role("heading", level=1)).to_have_text("Finetuning · d4")
    expect(page.locator(".tiles")).to_contain_text("Step30")
    assert not watch


def test_before_there_is_anything(open_page, server, watch):
    page = open_page(server + "/training", bypass_csp=True)
    expect(page.get_by_role("heading", level=1)).to_have_text("Nothing has been trained here yet")
    assert complaints(page) == []
    page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.locator("#prompt")).to_be_focused()
    assert not watch


def test_a_server_without_a_model_shows_the_run(browser, server, base_dir):
    some_run(base_dir, "base-d4", 40)
    with serve_app(create_waiting_app("There is no sft model yet.")) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page).to_have_url(url + "/training")
        expect(page.get_by_role("status").first).to_contain_text("There is no sft model yet.")
        expect(page.get_by_role("img", name="Loss by step")).to_be_visible()
        expect(page.get_by_role("link", name="Chat", exact=True)).to_be_hidden()
        assert page.request.get(url + "/v1/models").status == page.request.get(url + "/health").status == 503
        page.route("**/health", lambda route: route.fulfill(json={"status": "ready"}))
        expect(page.get_by_role("link", name="Open the chat")).to_be_visible()
        page.close()
