"""The chat page in a real browser: every control, phones and keyboards, and what a hostile model can do (nothing)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from serving import ScriptedEngine, byte_tokenizer, say, serve, words

from nanochat.engine import Delta, Engine
from nanochat.server import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
expect = sync_api.expect
expect.set_options(timeout=30_000)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
           --disable-component-update --disable-sync""".split()
ATTACKS = Path(__file__).with_name("attacks.txt").read_text(encoding="utf-8").split("\n%%\n")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")


def script(prompt: str) -> list[Delta]:
    """Looks at the end of what the model would read."""
    asked = prompt[-200:]
    if "slow" in asked:
        return words("slowly " * 3000)
    if "1234" in asked:
        tool = [Delta("1234 * 56", "python"), Delta("69104", "python_output")]
        return [*say("I ", "count: "), *tool, *say("it is ", "**69104**.")]
    if "code" in asked:
        return words("Some code:\n\n```python\ndef f(x):\n    return x + 1\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n")
    if "attack" in asked:
        return [Delta(piece) for piece in ("\n\n".join(ATTACKS)).splitlines(keepends=True)]
    return words("You said: " + prompt.rsplit("\n", 1)[-1][-60:])


class RecordingEngine(ScriptedEngine):
    """Keeps what it was asked last."""

    def submit(self, prompt, sampling):
        self.asked = super().submit(prompt, sampling)
        return self.asked


@pytest.fixture(scope="module")
def engine():
    return RecordingEngine(byte_tokenizer(), script, pace=0.004, max_context=20_000)


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
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: watch.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: watch.append(str(error)))
        page.on("dialog", lambda dialog: (watch.append("dialog"), dialog.dismiss()))
        page.on("request", lambda one: None if one.url.startswith((url, "blob:" + url)) else watch.append(one.url))
        page.goto(url)
        expect(page.locator("#prompt")).to_be_focused()
        return page

    yield open_page
    for context in contexts:
        context.close()


def ask(page, text: str):
    """Send a message; the answer's list item when it is complete."""
    before = page.locator(".answer").count()
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    answer = page.locator(".answer").nth(before)
    expect(answer.locator(".answer-foot .tools")).to_be_visible()
    return answer


def test_an_answer_streams_and_stays(open_page, watch):
    page = open_page()
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
    assert page.locator(".bubble").nth(1).inner_text() == "And <b>now</b>?"
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#empty")).to_be_visible()
    page.locator(".chat-open").click()
    expect(page.locator(".message")).to_have_count(4)
    assert not watch


def test_it_streams_while_the_model_writes_and_can_be_stopped(open_page, engine, watch):
    page = open_page()
    page.fill("#prompt", "slow")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .body")).to_contain_text("slowly slowly")
    expect(page.locator(".answer .rate")).to_contain_text("tokens/s")
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".answer .note")).to_have_text("You stopped this answer.")
    length = len(page.locator(".answer .body").inner_text())
    page.wait_for_timeout(300)
    assert len(page.locator(".answer .body").inner_text()) == length and not engine.has_work
    page.fill("#prompt", "slow")
    page.keyboard.press("Enter")
    expect(page.locator(".answer").nth(1).locator(".body")).to_contain_text("slowly")
    page.keyboard.press("Escape")
    expect(page.locator(".answer .note")).to_have_count(2)
    assert not watch


def test_a_tool_call_is_a_card(open_page, engine, watch):
    page = open_page()
    answer = ask(page, "What is 1234 * 56?")
    card = answer.get_by_role("group", name="Calculator")
    assert " ".join(card.inner_text().split()) == "1234 * 56 = 69104"
    assert answer.locator("strong").inner_text() == "69104"
    ask(page, "thanks")
    assert "1234 * 5669104it is" in engine.asked.text  # the model reads its call and the result again
    assert not watch


def test_markdown_code_and_copying(open_page, server, watch):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    answer = ask(page, "code")
    expect(answer.locator("figure.code figcaption span")).to_have_text("python")
    expect(answer.locator(".c-k").first).to_have_text("def")
    expect(answer.locator("td.right")).to_have_text("2")
    answer.get_by_role("button", name="Copy the code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "def f(x):\n    return x + 1\n"
    answer.get_by_role("button", name="Copy this answer").click()
    expect(page.locator("#status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()").startswith("Some code:\n\n```python")
    assert not watch


def test_answer_again_edit_and_go_back(open_page, watch):
    page = open_page()
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


def test_the_list_of_chats(open_page, tmp_path, watch):
    page = open_page()
    ask(page, "about whales")
    page.get_by_role("button", name="New chat").click()
    ask(page, "about tea")
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


def test_settings_reach_the_model_and_stay(open_page, engine, watch):
    page = open_page()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Seed").fill("42")
    page.get_by_label("Max tokens").fill("3")
    page.get_by_label("Instructions").fill("Be brief.")
    page.get_by_role("button", name="Done").click()
    answer = ask(page, "hello")
    sampling = engine.asked.sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens, sampling.top_k) == (0.3, 42, 3, 50)
    assert engine.asked.text.startswith("Be brief.")
    expect(answer.locator(".body")).to_have_text("You said: hello")
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Seed")).to_have_value("42")
    page.get_by_role("button", name="Use the defaults").click()
    expect(page.get_by_label("Seed")).to_have_value("")
    expect(page.get_by_label("Temperature")).to_have_value("0.8")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert not watch


def test_errors_are_readable_and_can_be_retried(open_page, server):
    page = open_page()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#prompt", "hello")
    page.keyboard.press("Enter")
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
    page.keyboard.press("Enter")
    expect(alert).to_contain_text("20000")  # the context, in the server's words


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


def test_nothing_that_a_model_writes_acts_on_the_page(open_page, watch):
    page = open_page()
    answer = ask(page, "attack")
    expect(answer.locator("figure").first).to_be_visible()
    assert answer.locator("script, img, iframe, form, style, link, object, embed, [onclick], [onerror]").count() == 0
    assert not watch  # no dialog, no request elsewhere, no complaint of the Content-Security-Policy


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(open_page, watch, scheme):
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, color_scheme=scheme)
    page.get_by_role("button", name="What is 1234 * 56?").tap()
    expect(page.locator(".answer .tools")).to_be_visible()
    page.fill("#prompt", "code")
    page.get_by_role("button", name="Send").tap()
    expect(page.locator(".answer").nth(1).locator(".tools")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.querySelector('#scroll').scrollWidth <= 360")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Show the list of chats").tap()
    expect(page.locator("#sidebar")).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.get_by_role("button", name="Show the list of chats")).to_be_focused()
    assert not watch


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_has_a_name(open_page, scheme):
    page = open_page(color_scheme=scheme)
    ask(page, "code")
    for selector in ".bubble|.markdown p|.rate|.hint|.model|.c-k|.c-mi|.code figcaption span|.chat-open".split("|"):
        assert contrast(page, selector) >= 4.5, selector
    nameless = page.evaluate(
        """() => {
            const labels = (e) => [...(e.labels ?? [])].some((label) => label.textContent.trim());
            const controls = [...document.querySelectorAll("button, input, textarea, a")];
            const bad = controls.filter((e) => !e.hidden && !e.ariaLabel && !e.textContent.trim() && !labels(e));
            return bad.map((e) => e.outerHTML);
        }"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


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
    expect(page.get_by_role("button", name="Answer again")).to_be_focused()


def test_a_real_model_answers_on_the_page(browser, tiny_tokenizer):
    from nanochat.gpt import GPT, GPTConfig

    config = GPTConfig(tiny_tokenizer.vocab_size, sequence_len=256, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0)).eval()
    engine = Engine(model, tiny_tokenizer, max_batch=2)
    with serve(engine, tiny_tokenizer, Settings(defaults={"temperature": 1.0, "max_tokens": 100})) as url:
        page = browser.new_page()
        page.goto(url)
        answer = ask(page, "What is the Moon?")
        assert answer.locator(".body").inner_text().strip()
        expect(answer.locator(".rate")).to_contain_text("tokens")
        assert engine.stats()["generated_tokens"] > 2
        page.close()
