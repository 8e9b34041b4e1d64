"""A real headless Chromium on the page of a real server; skipped where there is no browser or no driver for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.live import Live, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["live"]  # A fixture.

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing leaves the machine: the browser finds no name but its own host.
_ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-dev-shm-usage"]


@dataclass
class Visit:
    """A page on the server's address, and all that went wrong in it.

    Arguments:
        page: the browser's page.
        complaints: errors and warnings on the console, and exceptions.
        foreign: addresses of others that were asked for.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, started once."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        pytest.skip("no Chromium is installed; Debian's package is chromium")
    # As root, in containers, Chromium has no sandbox of its own.
    arguments = [*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, live: Live, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A new tab on the page, with settings of `browser.new_context` from the parameter."""
    settings: dict[str, Any] = getattr(request, "param", {})
    context = browser.new_context(**{"base_url": live.url, "viewport": {"width": 1000, "height": 900}, **settings})
    context.set_default_timeout(30_000)
    page = context.new_page()
    visit = Visit(page)
    page.on("console", lambda said: said.type in ("error", "warning") and visit.complaints.append(said.text))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("request", lambda asked: _is_foreign(asked.url, live.url) and visit.foreign.append(asked.url))
    page.goto("/")
    page.get_by_text("primaries, version 3").first.wait_for()
    yield visit
    assert visit.foreign == []
    context.close()


def _is_foreign(url: str, own: str) -> bool:
    return not url.startswith((f"{own}/", f"blob:{own}/"))


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the page go: $RAYML_SCREENSHOTS, or pytest's temporary folder."""
    folder = Path(os.environ.get("RAYML_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
