"""A real browser for tests, without a network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        if (path := shutil.which(name))
    ),
    None,
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium found: install one (Debian: apt-get install chromium) to run this test",
)


def needs_chromium(test):
    """Mark a test that drives a browser; it skips, and says so, where there is none."""
    return pytest.mark.browser(NEEDS_CHROMIUM(test))


@contextmanager
def open_page(**context) -> Iterator:
    """Open a page that reaches nothing but files and this machine.

    ``page.refused`` lists the addresses that it asked for elsewhere, ``page.errors`` what its
    scripts complained about.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_context(**context).new_page()
        page.refused, page.errors = [], []

        def decide(route) -> None:
            url = route.request.url
            if url.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "http://localhost")):
                route.continue_()
            else:
                page.refused.append(url)
                route.abort()

        page.route("**/*", decide)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        browser.close()
