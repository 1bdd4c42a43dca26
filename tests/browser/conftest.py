"""A real browser, driven headless, for what people look at; screenshots stay behind as test artefacts.

Chromium is the system's own (``PARETOMERGE_CHROMIUM`` names another); where there is none the tests skip, and
``.ci/run`` installs one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

AUDIT = (Path(__file__).parent / "audit.js").read_text(encoding="utf-8")
ARTEFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}

# A fresh profile looks for updates and its maker's hosts at every start; none of that is the page's doing.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class Sight:
    """A page as a person meets it, and what it did meanwhile.

    Attributes:
        page: playwright's handle.
        name: of its screenshots.
        errors: what the page said on its console that was an error or a warning, and exceptions that nobody caught.
        requests: addresses that it asked for, but for its own file and what is inline.
    """

    page: Page
    name: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def keep(self, what: str = "") -> Path:
        """A screenshot of the whole page, as an artefact."""
        name = re.sub(r"\W+", "-", f"{self.name}-{what}" if what else self.name).strip("-")
        path = ARTEFACTS / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=True)
        return path

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression, or function without arguments, is true.

        Unlike playwright's ``wait_for_function``, which has the page evaluate a text again and again: the report's
        content security policy forbids that, so it works by luck only, where the first look finds it true.

        Raises:
            AssertionError: it was not within a minute.
        """
        for _ in range(600):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"after a minute this was still not so: {condition}")

    def complaints(self) -> list[str]:
        """What is wrong with the page as it is now: for eyes, keyboards, screen readers, and what it did meanwhile."""
        found = [f"said: {each}" for each in self.errors] + [f"asked for: {each}" for each in self.requests]
        if self.overflow() > 0:
            found.append(f"scrolls sideways by {self.overflow()} pixels")
        return found + list(self.page.evaluate(AUDIT))

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window: more than 0 means that it scrolls sideways."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


class Look(Protocol):
    """Opens a file."""

    def __call__(
        self,
        file: Path,
        *,
        width: Literal["phone", "desktop"] = "desktop",
        dark: bool = False,
        name: str | None = None,
    ) -> Sight: ...


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests of a process."""
    found = os.environ.get("PARETOMERGE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium on this machine (apt-get install chromium, or set PARETOMERGE_CHROMIUM)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def look(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Look]:
    """Opens files, each in a profile of its own, and listens."""
    contexts = []

    def open_file(
        file: Path,
        *,
        width: Literal["phone", "desktop"] = "desktop",
        dark: bool = False,
        name: str | None = None,
    ) -> Sight:
        across, down = WIDTHS[width]
        context = chromium.new_context(
            viewport={"width": across, "height": down},
            color_scheme="dark" if dark else "light",
            has_touch=width == "phone",
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # megabytes of script on a busy machine
        sight = Sight(page, f"{name or request.node.name}-{width}{'-dark' if dark else ''}")
        own = file.resolve().as_uri()

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                sight.errors.append(message.text)

        def asked(each: Request) -> None:
            if each.url != own and not each.url.startswith(("data:", "blob:", "about:")):
                sight.requests.append(each.url)

        page.on("console", said)
        page.on("pageerror", lambda error: sight.errors.append(str(error)))
        page.on("request", asked)
        page.goto(own, wait_until="load")
        return sight

    yield open_file
    for each in contexts:
        each.close()
