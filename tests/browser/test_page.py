"""The web page as people use it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import Visit
from tests.serving.tiny_bundle import picture

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.slow

RED = picture("red", 320, 240)
DROP = """([files, target]) => {
  const transfer = new DataTransfer();
  for (const [name, type, data] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, { type }));
  }
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.querySelector(target).dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""
PASTE = """([name, type, data]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, { type }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
}"""


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def drop(page: Page, *files: tuple[str, str, bytes], target: str = "body") -> None:
    page.evaluate(DROP, [[(name, kind, text(data)) for name, kind, data in files], target])


def expect_cards(page: Page, *headings: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(".card h3")).to_have_text(list(headings))


def audit(page: Page) -> list[str]:
    """Serious faults that axe-core finds, as "rule: element"."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    found = axe.Axe().run(page).response["violations"]
    assert isinstance(found, list)
    return [
        f"{violation['id']} ({violation['impact']}): {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("moderate", "serious", "critical")
        for node in violation["nodes"]
    ]


def test_a_dropped_picture_is_classified(visit: Visit, screenshots: Path) -> None:
    page = visit.page
    drop(page, ("sunset.png", "image/png", RED), target="#drop")
    expect_cards(page, "red")
    rows = page.locator(".card tbody tr")
    assert rows.locator("th").all_inner_texts()[0] == "red" and rows.count() == 3
    shares = [float(share.split()[0]) for share in rows.locator(".share").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.2) and shares[0] > 80
    assert re.fullmatch(r"primaries, version 3 \([0-9a-f]{12}\)", page.locator(".by").inner_text())
    assert page.locator("#model").inner_text() == "primaries, version 3: 3 classes"
    assert page.locator("#status").inner_text().startswith("sunset.png: red, ")
    assert page.locator(".card img").get_attribute("alt") == "sunset.png"
    page.wait_for_function("() => parseFloat(document.querySelector('.track i').style.width) > 80")
    page.wait_for_timeout(700)  # The bars have grown.
    page.screenshot(path=screenshots / "one.png", full_page=True)
    assert visit.complaints == []


def test_a_pasted_picture_is_classified(visit: Visit) -> None:
    visit.page.evaluate(PASTE, ["image.png", "image/png", text(picture("blue"))])
    expect_cards(visit.page, "blue")
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("name", "data", "heading"),
    [
        ("notes.txt", b"only text, no picture at all", "This is not a JPEG, PNG or WebP picture."),
        ("half.png", RED[: len(RED) // 2], "This picture cannot be read: it is damaged or not complete."),
        ("empty.png", b"", "This file is empty."),
        ("large.png", RED + bytes(100_000), "This picture is too large. At most 98 KB and 50 megapixels are read."),
    ],
)
def test_refusals_in_clear_words(visit: Visit, screenshots: Path, name: str, data: bytes, heading: str) -> None:
    drop(visit.page, (name, "image/png" if name.endswith("png") else "text/plain", data))
    expect_cards(visit.page, heading)
    assert visit.page.locator("#status").inner_text() == f"{name}: {heading}"
    assert not visit.page.locator(".again").is_visible()
    visit.page.screenshot(path=screenshots / f"refused-{name}.png", full_page=True)
    # The browser itself notes each answer that is not a success; nothing else is on its console.
    assert all("the server responded with a status of 4" in line for line in visit.complaints)
    assert audit(visit.page) == []


def test_ten_at_once_and_a_bad_one_among_them(visit: Visit, screenshots: Path) -> None:
    labels = ["red", "green", "blue"] * 3 + ["red"]
    files = [(f"{n}-{label}.png", "image/png", picture(label)) for n, label in enumerate(labels)]
    drop(visit.page, *files, ("bad.txt", "text/plain", b"no picture, only text"))
    expect_cards(visit.page, *labels, "This is not a JPEG, PNG or WebP picture.")
    assert visit.page.locator(".file").all_inner_texts() == [name for name, *_ in files] + ["bad.txt"]
    visit.page.screenshot(path=screenshots / "ten.png", full_page=True)
    visit.page.get_by_role("button", name="Clear").click()
    expect_cards(visit.page)


def test_with_the_keyboard_alone(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "green.png").write_bytes(picture("green"))
    page = visit.page
    # Playwright asks for choosers without waiting that it is heard, and Chromium drops keys before the first frame.
    page.on("filechooser", lambda _chooser: None)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "green.png")
    expect_cards(page, "green")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert "Show where the model looked" in reached and "Clear" in reached
    while page.evaluate("document.activeElement.className") != "explain plain":
        page.keyboard.press("Shift+Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Space")
    page.locator(".explain[aria-pressed=true]").wait_for()
    assert visit.complaints == []


def test_where_the_model_looked(visit: Visit, screenshots: Path) -> None:
    import io

    from PIL import Image

    image = Image.new("RGB", (280, 140), (90, 90, 90))
    image.paste((255, 0, 0), (0, 0, 60, 40))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    page = visit.page
    drop(page, ("corner.png", "image/png", encoded.getvalue()))
    button = page.get_by_role("button", name="Show where the model looked")
    button.click()
    page.locator(".explain[aria-pressed=true]").wait_for()
    whole = "document.querySelector('.card canvas').getContext('2d').getImageData(0, 0, 224, 224).data"
    looked_at, elsewhere = page.evaluate(
        f"(() => {{ const d = {whole}; return [16, 200].map(p => d[4 * 225 * p + 3]) }})()"
    )
    assert looked_at < 40 < 150 < elsewhere
    page.screenshot(path=screenshots / "explained.png", full_page=True)
    page.get_by_role("button", name="Hide where the model looked").click()
    assert not page.locator(".card canvas").is_visible()
    assert visit.complaints == []


def test_an_example(visit: Visit) -> None:
    def with_examples(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "examples": ["hat", "t-shirt"]})

    page = visit.page
    page.route("**/web/about", with_examples)
    page.reload()
    page.get_by_role("button", name="Classify the drawing of: t-shirt").click()
    page.locator(".card table").wait_for()
    assert page.locator(".file").inner_text() == "drawing of: t-shirt"
    assert visit.complaints == []
    assert audit(page) == []


def _refuse_without_key(route: Route) -> None:
    if route.request.headers.get("x-api-key") == "secret":
        route.continue_()
    else:
        body = json.dumps({"error": {"code": "unauthorized", "message": "An API key is needed."}})
        route.fulfill(status=401, content_type="application/json", body=body)


def test_an_api_key(visit: Visit, screenshots: Path) -> None:
    from playwright.sync_api import expect

    page = visit.page
    for path in ("**/web/about", "**/predict"):
        page.route(path, _refuse_without_key)
    page.reload()
    expect(page.get_by_label("API key")).to_be_focused()
    page.screenshot(path=screenshots / "key.png", full_page=True)
    assert audit(page) == []
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server does not know this API key.")
    drop(page, ("sunset.png", "image/png", RED))
    expect_cards(page, "The server asks for an API key.")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use this key").click()
    expect_cards(page, "red")
    kept: Any = page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]")
    assert kept == [0, "", 1]


def test_a_busy_server_is_asked_again(visit: Visit) -> None:
    tries = []

    def busy(route: Route) -> None:
        tries.append(route)
        if len(tries) < 3:
            body = json.dumps({"error": {"code": "overloaded", "message": "All places are taken; try again."}})
            route.fulfill(status=503, content_type="application/json", headers={"retry-after": "0"}, body=body)
        else:
            route.continue_()

    visit.page.route("**/predict", busy)
    drop(visit.page, ("sunset.png", "image/png", RED))
    expect_cards(visit.page, "red")
    assert len(tries) == 3


def test_offline_and_back(visit: Visit) -> None:
    page = visit.page
    page.context.set_offline(True)
    drop(page, ("sunset.png", "image/png", RED))
    expect_cards(page, "You are offline.")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect_cards(page, "red")


def test_a_name_is_only_text(visit: Visit) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    drop(visit.page, (name, "image/png", RED))
    expect_cards(visit.page, "red")
    assert visit.page.locator(".file").inner_text() == name
    assert visit.page.locator("img").count() == 1 and visit.complaints == []


@pytest.mark.parametrize(
    "visit",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
        {"forced_colors": "active"},
        {"reduced_motion": "reduce"},
    ],
    ids=["light", "dark", "phone", "contrast", "still"],
    indirect=True,
)
def test_everybody_can_use_it(visit: Visit, screenshots: Path, request: pytest.FixtureRequest) -> None:
    page = visit.page
    assert audit(page) == []
    drop(page, ("a.png", "image/png", RED), ("b.txt", "text/plain", b"no picture, only text"))
    expect_cards(page, "red", "This is not a JPEG, PNG or WebP picture.")
    page.wait_for_timeout(700)
    assert audit(page) == []
    wide = page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert wide, "it has to be scrolled sideways"
    name = request.node.callspec.id
    assert page.get_by_label("Take a photo").is_visible() is (name == "phone")
    if name == "still":
        assert page.evaluate("getComputedStyle(document.querySelector('.track i')).transitionDuration") == "0s"
    page.screenshot(path=screenshots / f"{name}.png", full_page=True)


def test_the_policy_holds(visit: Visit) -> None:
    """A script or style that somebody smuggled in would not run."""
    visit.page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.smuggled = true";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend", "<p id=inserted style='color: rgb(1, 2, 3)' onclick='x()'>x</p>");
    }""")
    assert visit.page.evaluate("window.smuggled") is None
    assert visit.page.evaluate("getComputedStyle(document.getElementById('inserted')).color") != "rgb(1, 2, 3)"
    assert any("Content Security Policy" in line for line in visit.complaints)
