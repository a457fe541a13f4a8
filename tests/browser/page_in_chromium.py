"""`make browser-test`: the page in a real headless Chromium, as somebody uses it. It fails where there is none.

Its name keeps it out of `make test`, which must pass without a browser. Screenshots go to build/browser.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, expect, sync_playwright

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.models import load_base_model
from tests.conftest import build_tiny_base
from tests.serving.shop import ICL_TOKENS, QUESTION, Running, Shop, eventually, running, serving, slow
from tests.talkative import talkative

__all__ = ["talkative"]

PICTURES = Path("build/browser")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REMEDY = (
    "There is no Chromium. Install one (`apt-get install chromium`, or `playwright install chromium`), or name it: "
    "CHROMIUM=/path/to/chromium make browser-test."
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            # A container's root has no user namespaces to build the sandbox of; the page comes from this very test.
            browser = playwright.chromium.launch(executable_path=found, chromium_sandbox=os.geteuid() != 0)
        except Error as error:
            pytest.fail(f"{REMEDY}\n{error.message}", pytrace=False)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that may ask nobody but the gateway, and must not complain."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, locale="en-GB")
    context.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []

    def complain(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "favicon" not in str(message.location):
            complaints.append(message.text)

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("console", complain)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", note)
    yield page
    context.close()
    # A refused request (401) is written to the console by the browser itself.
    assert [text for text in complaints if "the server responded with a status of" not in text] == []
    assert all(url.startswith("http://127.0.0.1:") for url in asked), asked


@pytest.fixture
def shop(talkative: Path, tmp_path: Path) -> Shop:
    """Answers end soon here."""
    return filled(Shop(load_base_model(talkative, device="cpu"), tmp_path))


def filled(shop: Shop) -> Shop:
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2, "canary")
    shop.add("law", 1, "champion")
    return shop


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


def test_pick_a_corpus_and_chat(shop: Shop, page: Page) -> None:
    with serving(shop) as server:
        page.goto(server.url)
        options = page.get_by_label("Corpus").locator("option")
        base = shop.base.identity.id
        expect(options).to_have_text(
            ["clinic (version 1)", "clinic@canary (version 2)", "law (version 1)", f"{base} (no Cartridge)"]
        )
        digest = shop.cartridges["clinic", 1].digest
        about = shown(page, "cartridge")
        assert (about["version"], about["alias"], about["digest"]) == ("1", "champion", digest[:12])
        assert about["tokens"] == "9"
        graded = shown(page, "evaluation")
        assert (graded["this Cartridge"], graded["corpus in context"], graded["share of it"]) == (
            "98.0 %",
            "100.0 %",
            "98.0 %",
        )
        assert (graded["questions"], graded["tokens in context"]) == ("240", f"{ICL_TOKENS:,}")
        assert graded["saved a request"] == f"{ICL_TOKENS - 9:,} tokens"
        picture(page, "before")

        question = QUESTION[0]["content"]
        ask(page, question)
        expect(page.locator(".said.user")).to_have_text(question)
        by = page.locator(".by")
        expect(by).to_have_text(re.compile(r"^clinic version 1, 9 tokens, \d+ in, \d+ out, \d+\.\d s$"))
        expected = shop.expected("clinic", max_tokens=600)
        assert said(page) == expected.text
        assert shown(page, "saved")["answers"] == "1"
        assert shown(page, "saved")["tokens saved"] == f"{ICL_TOKENS - 9:,}"
        picture(page, "answered")

        # What is said next follows what was said before.
        ask(page, "And her room?")
        expect(by).to_have_count(2)
        before = page.evaluate("messages")
        assert [turn["role"] for turn in before] == ["user", "assistant"] * 2
        assert before[1]["content"] == expected.text

        # Another version, a new conversation.
        page.get_by_label("Corpus").select_option("clinic@canary")
        expect(page.locator(".said")).to_have_count(0)
        assert shown(page, "cartridge")["version"] == "2"
        ask(page, question)
        expect(by).to_have_text(re.compile("^clinic version 2, 9 tokens"))
        assert said(page) == shop.expected("clinic", 2, max_tokens=600).text
        page.get_by_label("Corpus").select_option(base)
        assert shown(page, "cartridge") == {"served": "the base model, no Cartridge"}
        ask(page, question)
        expect(by).to_have_text(re.compile("^base model, "))


def test_words_come_one_after_another_and_stop(tmp_path: Path, page: Page) -> None:
    shop = filled(Shop(build_tiny_base("qwen2"), tmp_path))
    with serving(shop) as server, slow(shop, 0.05):
        page.goto(server.url)
        expect(page.get_by_label("Corpus").locator("option")).to_have_count(4)
        ask(page, QUESTION[0]["content"])
        assert eventually(lambda: running(server) == 1)
        lengths = []
        for _ in range(200):
            lengths.append(len(said(page)))
            if len(set(lengths)) > 4:
                break
            time.sleep(0.1)
        assert lengths == sorted(lengths) and len(set(lengths)) > 4
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        picture(page, "streaming")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        # The engine is free again, and what was written stays.
        assert eventually(lambda: running(server) == 0)
        assert len(said(page)) >= lengths[-1]
        expect(page.locator(".said.error")).to_have_count(0)
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator(".said")).to_have_count(0)


def test_markup_is_text(shop: Shop, page: Page) -> None:
    with serving(shop) as server:
        page.goto(server.url)
        expect(page.get_by_label("Corpus").locator("option")).to_have_count(4)
        ask(page, "<img src=x onerror=document.title='caught'><b>bold</b>")
        expect(page.locator(".by")).to_have_count(1)
        expect(page.locator(".said.user")).to_contain_text("<b>bold</b>")
        assert page.locator("#talk img, #talk b").count() == 0
        assert page.title() == "Cartridges"


def test_refusals_are_shown(shop: Shop, page: Page) -> None:
    with serving(shop) as server:
        page.goto(server.url)
        expect(page.get_by_label("Corpus").locator("option")).to_have_count(4)
        ask(page, "x " * 3000)
        expect(page.locator(".said.error")).to_contain_text("maximum context length is 1024 tokens")
        picture(page, "refused")
        # It is not part of the conversation, which goes on.
        ask(page, QUESTION[0]["content"])
        expect(page.locator(".by")).to_have_count(1 + 1)
        assert said(page) == shop.expected("clinic", max_tokens=600).text


def test_a_key_is_asked_for(shop: Shop, page: Page) -> None:
    with catalog_session(shop.settings) as session:
        token = create_api_key(session, "default", "page", corpora=["law"])[1]
    with serving(shop) as server:
        page.goto(server.url)
        expect(page.locator("#cartridge")).to_contain_text("No valid API key was sent.")
        picture(page, "locked")
        page.get_by_label("API key").fill(token)
        page.get_by_label("API key").press("Enter")
        page.get_by_label("API key").blur()
        expect(page.get_by_label("Corpus").locator("option")).to_have_text(
            ["law (version 1)", re.compile("no Cartridge")]
        )
        ask(page, QUESTION[0]["content"])
        expect(page.locator(".by")).to_have_text(re.compile("^law version 1"))
        assert said(page) == shop.expected("law", max_tokens=600).text


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1200, "dark")])
def test_narrow_and_dark(shop: Shop, browser: Browser, width: int, scheme: Any) -> None:
    with serving(shop) as server:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(server.url)
        expect(page.get_by_label("Corpus").locator("option")).to_have_count(4)
        ask(page, QUESTION[0]["content"])
        expect(page.locator(".by")).to_have_count(1)
        picture(page, f"{scheme}-{width}")
        # Nothing sticks out to the side.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        context.close()


def test_the_server_goes_away(shop: Shop, page: Page) -> None:
    server: Running
    with serving(shop) as server:
        page.goto(server.url)
        expect(page.get_by_label("Corpus").locator("option")).to_have_count(4)
    ask(page, QUESTION[0]["content"])
    expect(page.locator(".said.error")).to_have_count(1)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
