"""The two pictures that the documentation shows: a report, and the web page with answers on it.

    rayml demo && python -m scripts.pictures rayml-demo/run rayml-demo/photos/validation

Writes docs/images/report.png and docs/images/page.png. Needs Chromium (Debian's package chromium), playwright and
Linux, as tests/browser does. The pictures are palette PNGs of at most `MAX_BYTES`. Look at them before they are
committed.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from serving.config import ServeSettings
from serving.run import running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
MAX_BYTES = 200_000
REPORT_PX = {"width": 1100, "height": 1480}  # The winner, the grid and the learning curves.
PAGE_PX = {"width": 900, "height": 1000}
SHOWN = ("outwear", "shoes")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def keep(screenshot: bytes, target: Path) -> None:
    """Write a screenshot with 256 colours.

    Raises:
        SystemExit: it is larger than `MAX_BYTES`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(screenshot)) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    size = target.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{target} must have at most {MAX_BYTES} bytes. Received: {size}")
    print(f"{target}: {size / 1000:.0f} kB")


def photograph_report(browser: Browser, report: Path) -> bytes:
    """The top of a report."""
    page = browser.new_page(viewport=REPORT_PX, color_scheme="light")  # type: ignore[arg-type]
    page.goto(report.resolve().as_uri())
    return page.screenshot()


def photograph_page(browser: Browser, url: str, pictures: list[Path]) -> bytes:
    """The web page after some pictures were chosen, the last with where the model looked."""
    page = browser.new_page(viewport=PAGE_PX, color_scheme="light")  # type: ignore[arg-type]
    page.goto(url)
    page.locator("#files").set_input_files(pictures)
    page.locator(".card table:visible").nth(len(pictures) - 1).wait_for()
    page.locator(".card .explain").last.click()
    page.locator(".explain[aria-pressed=true]").wait_for()
    page.wait_for_timeout(1_000)  # The bars have grown.
    return page.screenshot(full_page=True)


def main() -> None:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished search on the sample")
    parser.add_argument("photos", type=Path, help="its class folders of validation photos")
    arguments = parser.parse_args()
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        raise SystemExit(f"one of {', '.join(BROWSERS)} was expected. Received: none of them on the PATH")
    from playwright.sync_api import sync_playwright

    pictures = [sorted((arguments.photos / label).iterdir())[0] for label in SHOWN]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = replace(ServeSettings(), port=probe.getsockname()[1])
    # As root, in containers, Chromium has no sandbox of its own.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with running(arguments.run / "best", settings) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--disable-dev-shm-usage", *sandbox])
        keep(photograph_report(browser, arguments.run / "report.html"), IMAGES / "report.png")
        keep(photograph_page(browser, url, pictures), IMAGES / "page.png")
        browser.close()


if __name__ == "__main__":
    main()
