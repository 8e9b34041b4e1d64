"""The report in a real headless Chromium: nothing is asked for, nothing complains, everything fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rayml.progress import Progress
from rayml.sample import write_sample
from tests.rayml.report import made
from tune_jobs.config import SearchSettings
from tune_jobs.run import run_tune

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

HOSTILE = ("<script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">", "plain")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Path:
    """Of a real search on the sample."""
    folder = tmp_path_factory.mktemp("report")
    write_sample(folder / "photos", train_per_class=12, validation_per_class=8)
    settings = SearchSettings(data=folder / "photos", out=folder / "run", cache=folder / "cache", backbone="tiny")
    run_tune(replace(settings, epochs=4), Progress(quiet=True))
    return folder / "run" / "report.html"


def opened(browser: Browser, page_file: Path, **settings: Any) -> tuple[Page, list[str], list[str]]:
    """The page, what was said on its console, and the addresses that it asked for."""
    page = browser.new_context(**settings).new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    return page, said, asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_every_screen_and_asks_for_nothing(
    browser: Browser, report: Path, screenshots: Path, width: int, scheme: Any
) -> None:
    size = {"width": width, "height": 900}
    page, said, asked = opened(browser, report, viewport=size, color_scheme=scheme)
    page.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert report.stat().st_size < 5_000_000
    # No sideways scrolling of the page; wide tables scroll within themselves.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.plot").count() == 5
    assert page.locator("svg.plot").evaluate_all("all => all.every(one => one.getBoundingClientRect().height > 100)")
    assert page.locator(".gallery img").evaluate_all(
        "all => all.length >= 12 && all.every(one => one.naturalWidth > 0)"
    )
    for link in page.locator("nav a").all():
        assert page.locator(str(link.get_attribute("href"))).count() == 1
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Browser, report: Path, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    # The page's own policy lets no script in, axe's neither.
    page, _, _ = opened(browser, report, color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(page).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found if fault["impact"] != "minor"] == []
    page.context.close()


def test_it_prints(browser: Browser, report: Path, screenshots: Path) -> None:
    page, _, _ = opened(browser, report, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(path=screenshots / "report.pdf", format="A4").startswith(b"%PDF")
    page.context.close()


def test_names_that_would_be_scripts_are_text(browser: Browser, tmp_path: Path) -> None:
    from rayml.report import keep_report

    data = made.photos(tmp_path / "photos", HOSTILE)
    page, said, asked = opened(browser, keep_report(made.finished(tmp_path / "run", data, HOSTILE), data))
    assert (said, len([url for url in asked if not url.startswith("data:")])) == ([], 1)
    assert page.title() == "garments: rayml report"
    assert page.locator("#classes th[scope=row]").all_inner_texts().count(HOSTILE[0]) == 1
    page.context.close()


def test_a_watched_page_loads_itself_anew(browser: Browser, tmp_path: Path) -> None:
    import threading

    from rayml.report import watch_run

    run = made.searching(tmp_path / "run", {"00000": (0.5,)})
    held = made.hold(run)
    out = tmp_path / "live.html"
    seen: list[str] = []

    def written(page: Path, status: str) -> None:
        seen.append(status)

    watcher = threading.Thread(target=watch_run, args=(run, out), kwargs={"written": written, "every_s": 1.0})
    watcher.start()
    while not seen:
        watcher.join(0.1)
    page, _, _ = opened(browser, out)
    assert page.locator(".chip").inner_text() == "searching"
    made.history(run, {"00000": (0.5, 0.8125)})
    page.get_by_text("0.8125").first.wait_for(timeout=60_000)
    (run / "run.json").write_text((run / "run.json").read_text().replace('"searching"', '"interrupted"'))
    page.get_by_text("interrupted").first.wait_for(timeout=60_000)
    watcher.join(60)
    assert seen[-1] == "interrupted"
    held.close()
    page.context.close()
