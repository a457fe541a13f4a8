"""Pictures of pages: what must be read on them is looked for first, and a picture is small enough for the docs."""

import io
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Browser, Route, expect
from rich.console import Console

WIDTH, HEIGHT = 1280, 800
LARGEST = 300_000
"""Bytes of a picture."""
PATIENCE_MS = 60_000


class PictureError(Exception):
    """A page lacks what it should show, or its picture is too large."""


class Camera:
    """One browser page that asks this machine only.

    Args:
        browser: Opens the page.
        folder: Where pictures go.
        say: Told of every picture.
    """

    def __init__(self, browser: Browser, folder: Path, say: Console) -> None:
        self._folder, self._say = folder, say
        size = {"width": WIDTH, "height": HEIGHT}
        self.page = browser.new_context(viewport=size, locale="en-GB", reduced_motion="reduce").new_page()  # type: ignore[arg-type]
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.route("**/*", _keep_inside)

    def open(self, address: str) -> None:
        """Go to a page."""
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        self.page.goto(address)

    def see(self, *texts: str) -> None:
        """Wait until the page shows all the texts.

        Raises:
            PictureError: It does not; names the first that is missing.
        """
        for text in texts:
            try:
                expect(self.page.locator("body")).to_contain_text(text, timeout=PATIENCE_MS)
            except AssertionError as error:
                raise PictureError(f"{self.page.url} does not show {text!r}.") from error

    def take(self, name: str, *texts: str, height: int | None = None, settle_ms: float = 5_000) -> None:
        """Write `NAME.png`.

        Args:
            name: Of the file.
            texts: What the page must show.
            height: Of the picture, in pixels; None for the whole page.
            settle_ms: What canvases and transitions get: they do not say when they are done.

        Raises:
            PictureError: A text is missing, or the file would be larger than 300 kB.
        """
        self.see(*texts)
        if height is None:
            height = max(HEIGHT, int(self.page.evaluate("document.documentElement.scrollHeight")))
        self.page.set_viewport_size({"width": WIDTH, "height": height})
        self.page.evaluate("window.scrollTo(0, 0)")
        self.page.wait_for_timeout(settle_ms)
        stream = io.BytesIO()
        with Image.open(io.BytesIO(self.page.screenshot())) as shot:
            shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if stream.tell() > LARGEST:
            raise PictureError(f"{name}.png would have {stream.tell():,} bytes; {LARGEST:,} are allowed.")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{name}.png").write_bytes(stream.getvalue())
        self._say.print(f"{name}.png  {stream.tell() / 1000:,.0f} kB  {self.page.url}", highlight=False, soft_wrap=True)


def _keep_inside(route: Route) -> None:
    """Prefect's and MLflow's pages would load what they have elsewhere."""
    if urlsplit(route.request.url).hostname == "127.0.0.1":
        route.continue_()
    else:
        route.abort()
