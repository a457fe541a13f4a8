"""`make browser-test`: the page in a real headless Chromium, as somebody uses it. It fails where there is none.

Its name keeps it out of `make test`, which must pass without a browser. Screenshots go to build/screenshots.
"""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.reference.samples import SAMPLE_PATH
from tests.browser.chromium import NoChromiumError, chromium
from tests.serving.shop import ICL_TOKENS, Shop, eventually, running, serving, slow

PICTURES = Path("build/screenshots")
WAIT_MS = 30_000
QUESTION = "Which is the ward of Hanna Lindgren?"
LONG_QUESTION = "Write a short story about Dora Vidal."


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    try:
        with chromium() as browser:
            yield browser
    except NoChromiumError as error:
        pytest.fail(str(error), pytrace=False)


@contextmanager
def watched(browser: Browser, **context: Any) -> Iterator[Page]:
    """A page that may ask nobody but the gateway, and must not complain."""
    opened = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, "locale": "en-GB"} | context)
    opened.set_default_timeout(WAIT_MS)
    page = opened.new_page()
    complaints: list[str] = []
    asked: list[str] = []

    def complain(message: ConsoleMessage) -> None:
        # The browser itself writes down requests that are refused or break.
        by_itself = "Failed to load resource" in message.text or "favicon" in str(message.location)
        if message.type in ("error", "warning") and not by_itself:
            complaints.append(message.text)

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("console", complain)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", note)
    try:
        yield page
    finally:
        opened.close()
    assert complaints == []
    assert asked and all(url.startswith("http://127.0.0.1:") for url in asked), asked


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched(browser) as page:
        yield page


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base_model("reference", device="cpu")


@pytest.fixture
def shop(base: BaseModel, tmp_path: Path) -> Shop:
    """The reference model behind the first entries of sample documents: it answers in words, and rightly."""
    shop = Shop(base, tmp_path)
    shop.add("clinic", 1, "champion", text=beginning("clinic-records", 3))
    shop.add("clinic", 2, "canary", text=beginning("clinic-records", 2))
    shop.add("parts", 1, "champion", text=beginning("parts-catalogue", 3))
    return shop


def beginning(document: str, entries: int) -> str:
    text = (SAMPLE_PATH / "documents" / f"{document}.md").read_text(encoding="utf-8")
    return "\n".join(text.splitlines()[: 2 + entries])


def opened(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.get_by_label("Corpus").locator("option")).to_have_count(4)


def shown(page: Page, where: str) -> dict[str, str]:
    """A list of the page's right side."""
    names, values = page.locator(f"#{where} dt").all_inner_texts(), page.locator(f"#{where} dd").all_inner_texts()
    return dict(zip(names, values, strict=True))


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Send").click()


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def said(page: Page) -> str:
    """The newest answer, without the line below it."""
    found: Any = page.evaluate("[...document.querySelectorAll('.said.assistant')].at(-1)?.firstChild?.data ?? ''")
    return str(found)


def expected(shop: Shop, corpus: str | None, version: int, *turns: str) -> str:
    """What the library answers; turns are the user's and the assistant's in turn."""
    messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    front = [] if corpus else [shop.base.tokenizer.bos_token_id]
    text: str = shop.expected(corpus, version, max_tokens=600, front=front, messages=messages).text
    assert text
    return text


def test_pick_a_corpus_and_chat(shop: Shop, page: Page) -> None:
    with serving(shop) as server:
        opened(page, server.url)
        base = shop.base.identity.id
        expect(page.get_by_label("Corpus").locator("option")).to_have_text(
            ["clinic (version 1)", "clinic@canary (version 2)", "parts (version 1)", f"{base} (no Cartridge)"]
        )
        clinic = shop.cartridges["clinic", 1]
        saved = ICL_TOKENS - clinic.num_tokens
        memory = f"{saved * 2 / 1024:.1f} MiB"
        about = shown(page, "cartridge")
        assert (about["version"], about["alias"], about["digest"]) == ("1", "champion", clinic.digest[:12])
        assert about["tokens"] == str(clinic.num_tokens)
        assert shown(page, "evaluation") == {
            "this Cartridge": "98.0 %",
            "corpus in context": "100.0 %",
            "share of it": "98.0 %",
            "questions": "240",
            "tokens in context": f"{ICL_TOKENS:,}",
            "tokens saved a request": f"{saved:,}",
            "KV memory saved": memory,
        }
        picture(page, "before")

        ask(page, QUESTION)
        expect(page.locator(".said.user")).to_have_text(QUESTION)
        by = page.locator(".by")
        expect(by).to_have_text(
            re.compile(rf"^clinic version 1, {clinic.num_tokens} tokens, \d+ in, \d+ out, \d+\.\d s$")
        )
        answer = said(page)
        assert answer == expected(shop, "clinic", 1, QUESTION) and "river" in answer
        assert shown(page, "saved") == {
            "answers": "1",
            "tokens saved": f"{saved:,}",
            "KV memory saved": memory,
        }

        # What is said next follows what was said before.
        ask(page, "Which is the diet of Dora Vidal?")
        expect(by).to_have_count(2)
        turns = page.evaluate("messages.map((turn) => turn.content)")
        assert turns == [QUESTION, answer, "Which is the diet of Dora Vidal?", said(page)]
        assert said(page) == expected(shop, "clinic", 1, *turns[:3])
        assert shown(page, "saved")["answers"] == "2"
        picture(page, "answered")

        # Another version, a new conversation.
        page.get_by_label("Corpus").select_option("clinic@canary")
        expect(page.locator(".said")).to_have_count(0)
        assert shown(page, "cartridge")["version"] == "2"
        ask(page, QUESTION)
        expect(by).to_have_text(re.compile("^clinic version 2, "))
        assert said(page) == expected(shop, "clinic", 2, QUESTION)
        page.get_by_label("Corpus").select_option(base)
        assert shown(page, "cartridge") == {"served": "the base model, no Cartridge"}
        ask(page, QUESTION)
        expect(by).to_have_text(re.compile("^base model, "))
        assert said(page) == expected(shop, None, 1, QUESTION)


def test_words_come_one_after_another_and_stop(shop: Shop, page: Page) -> None:
    with serving(shop) as server, slow(shop, 0.15):
        opened(page, server.url)
        ask(page, QUESTION)
        lengths: list[int] = []
        for _ in range(300):
            lengths.append(len(said(page)))
            if len(set(lengths)) > 3:
                break
            time.sleep(0.05)
        assert lengths == sorted(lengths) and len(set(lengths)) > 3
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        picture(page, "streaming")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        # The engine is free again, and what was written stays.
        assert eventually(lambda: running(server) == 0)
        stopped = said(page)
        assert len(stopped) >= lengths[-1] and stopped != expected(shop, "clinic", 1, QUESTION)
        expect(page.locator(".said.error")).to_have_count(0)
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator(".said")).to_have_count(0)


def test_markup_is_text(shop: Shop, page: Page) -> None:
    with serving(shop) as server:
        opened(page, server.url)
        ask(page, "<img src=x onerror=document.title='caught'><b>bold</b>")
        expect(page.locator(".by")).to_have_count(1)
        expect(page.locator(".said.user")).to_contain_text("<b>bold</b>")
        assert page.locator("#talk img, #talk b").count() == 0
        assert page.title() == "Cartridges"


def test_refusals_are_shown(shop: Shop, page: Page) -> None:
    with serving(shop) as server:
        opened(page, server.url)
        ask(page, "Why? " * 3000)
        expect(page.locator(".said.error")).to_contain_text("maximum context length is 4096 tokens")
        expect(page.locator(".by")).to_have_count(0)
        # It is not part of the conversation, which goes on.
        page.get_by_role("button", name="New conversation").click()
        ask(page, QUESTION)
        expect(page.locator(".by")).to_have_count(1)
        assert said(page) == expected(shop, "clinic", 1, QUESTION)
        # A corpus that is gone since the page was loaded.
        server.gateway.resolver.forget()
        page.evaluate("document.getElementById('model').options[0].value = 'law'; models[0].id = 'law'")
        ask(page, QUESTION)
        expect(page.locator(".said.error")).to_contain_text("law")
        picture(page, "refused")


def test_a_key_is_asked_for(shop: Shop, page: Page) -> None:
    with catalog_session(shop.settings) as session:
        token = create_api_key(session, "default", "page", corpora=["parts"])[1]
    with serving(shop) as server:
        page.goto(server.url)
        key = page.get_by_label("API key")
        expect(page.locator("#refused")).to_have_text("This gateway asks for a key; its operators make them.")
        picture(page, "locked")
        key.fill("ck-guessed")
        key.press("Enter")
        expect(page.locator("#refused")).to_have_text("This key is not valid.")
        key.fill(token)
        key.press("Enter")
        expect(page.get_by_label("Corpus").locator("option")).to_have_text(
            ["parts (version 1)", re.compile("no Cartridge")]
        )
        expect(page.locator("#refused")).to_have_text("")
        ask(page, "Which is the warranty of Mistral hinge?")
        expect(page.locator(".by")).to_have_text(re.compile("^parts version 1"))
        assert "61" in said(page)
        # Neither in the address nor kept for the next visitor.
        assert token not in page.url
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1200, "dark")])
def test_narrow_and_dark(shop: Shop, browser: Browser, width: int, scheme: Any) -> None:
    viewport = {"width": width, "height": 800}
    with serving(shop) as server, watched(browser, viewport=viewport, color_scheme=scheme) as page:
        opened(page, server.url)
        ask(page, QUESTION)
        expect(page.locator(".by")).to_have_count(1)
        picture(page, f"{scheme}-{width}")
        # Nothing sticks out to the side; the corpus is picked above the talk where there is one column.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        pick, chat = (page.locator(f"#{part}").bounding_box() for part in ("pick", "chat"))
        assert pick is not None and chat is not None
        assert (pick["y"] + pick["height"] <= chat["y"]) == (width < 600)


class Between:
    """A proxy that passes bytes on until it is told to cut all connections."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname, parts.port)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._socket.accept()[0]
            except OSError:
                return
            far = socket.create_connection(self._to)
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while some := source.recv(65536):
                sink.sendall(some)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for one in (self._socket, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_a_stream_that_is_cut(shop: Shop, page: Page) -> None:
    with serving(shop) as server, slow(shop, 0.15):
        between = Between(server.url)
        opened(page, between.url)
        ask(page, QUESTION)
        for _ in range(300):
            if said(page):
                break
            time.sleep(0.05)
        between.cut()
        expect(page.locator(".said.error")).to_have_text("The answer was cut off.")
        # What came stays, and the page can be used on.
        assert said(page)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        picture(page, "cut")
        ask(page, QUESTION)
        expect(page.locator(".said.error").last).to_have_text("The gateway cannot be reached.")
        # Nobody goes on writing for a caller who is gone.
        assert eventually(lambda: running(server) == 0)


def test_a_stream_that_ends_without_saying_so(shop: Shop, page: Page) -> None:
    """What stands between may end an answer in due form, without its last event."""
    event = 'data: {"choices": [{"index": 0, "delta": {"content": "The ward"}}]}\n\n'
    with serving(shop) as server:
        opened(page, server.url)
        page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=event))
        ask(page, QUESTION)
        expect(page.locator(".said.error")).to_have_text("The answer was cut off.")
        assert said(page) == "The ward"
        page.unroute("**/v1/chat/completions")
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        ask(page, QUESTION)
        expect(page.locator(".said.error").last).to_have_text("The gateway answered with status 502.")
