"""A real headless Chromium, of the system's packages or of the place that CHROMIUM names."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Error, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REMEDY = (
    "There is no Chromium. Install one (`apt-get install chromium`, or `playwright install chromium`), or name it: "
    "CHROMIUM=/path/to/chromium."
)
QUIET = [
    # The browser itself asks nobody for updates or variations: no network is needed.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]


class NoChromiumError(Exception):
    """No browser could be started; with the remedy."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, closed at the end.

    Raises:
        NoChromiumError: There is none, or it does not start.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            # A container's root has no user namespaces to build the sandbox of; only pages of our own are opened.
            browser = playwright.chromium.launch(
                executable_path=found, chromium_sandbox=os.geteuid() != 0, args=QUIET, timeout=120_000
            )
        except Error as error:
            raise NoChromiumError(f"{REMEDY}\n{error.message}") from error
        yield browser
        browser.close()
