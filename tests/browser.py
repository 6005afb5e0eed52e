"""A real Chromium for tests of pages: without a GPU, and with nothing sent out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from osn_gs.benchmarks.headless_browser import CHROMIUM, FLAGS

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in; install chromium")


@contextmanager
def browser(profile: Path, width: int = 1100, height: int = 760) -> Iterator[Any]:
    """A headless browser with a fresh profile; `new_page()` opens a window in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            headless=True,
            args=list(FLAGS),
            viewport={"width": width, "height": height},
            accept_downloads=True,
        )
        try:
            yield context
        finally:
            context.close()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
