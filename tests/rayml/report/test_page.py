from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

import pytest

from rayml.errors import UsageError
from rayml.report import keep_report, watch_run, write_report
from tests.rayml.report import made

HOSTILE = ('<script>alert("1")</script>', "</style><img src=x onerror=alert(1)>", "$\\frac{1}{0}$ & 'quotes' {{ 7*7 }}")
# Elements that HTML never closes.
_VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page, and whether its elements are nested as they should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "title"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return made.photos(tmp_path / "photos")


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    return made.finished(tmp_path / "run", data)


def test_the_page_of_a_finished_run(run: Path, data: Path) -> None:
    page = keep_report(run, data)
    assert page == run / "report.html"
    found = Reader(page.read_text(encoding="utf-8"))
    for words in (
        "Best of 4 trials: 8 inner units at learning rate 0.001, with 75.0 % of 12 validation photos right",
        "The winner, and why",
        made.REASON,
        "Most frequent mistakes",
        "Worst mistakes",
        "feature pass over the photos: 60 computed by openvino",
        "75.0 s",
        "digest of the data " + "d" * 64,
        "learning_rate 0.001, 0.01",
        "openvino",
        "python 3.11.7",
    ):
        assert words in found.words, words
    pictures = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(pictures) == 3 + 12
    assert all(str(picture["src"]).startswith("data:image/jpeg;base64,") and picture["alt"] for picture in pictures)
    assert not list(run.glob(".*"))


def test_every_plot_has_words_in_its_place(run: Path) -> None:
    found = Reader(write_report(run).read_text(encoding="utf-8"))
    plots = [attributes for tag, attributes in found.tags if tag == "svg" and attributes.get("class") == "plot"]
    assert len(plots) == 1 + len(made.SIZES) + 1  # the winner's, one for each size, calibration
    assert all(plot["role"] == "img" and len(str(plot["aria-label"])) > 60 for plot in plots)
    assert any("learning rate 0.01: best 0.200 at epoch 1, stopped at 2" in str(plot["aria-label"]) for plot in plots)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = (run / "report.html").read_text(encoding="utf-8")
    for name in re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text):
        assert name in ids


def test_the_page_asks_for_nothing_and_runs_nothing(run: Path, data: Path) -> None:
    text = keep_report(run, data).read_text(encoding="utf-8")
    found = Reader(text)
    assert not {tag for tag, _ in found.tags} & {"script", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    policy = [a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


def test_names_from_data_stay_text(tmp_path: Path) -> None:
    data = made.photos(tmp_path / "photos", HOSTILE)
    (data / "validation" / "0" / "3.png").rename(data / "validation" / "0" / "<b>\udce9.png")
    run = made.finished(
        tmp_path / "run<i>",
        made.photos(tmp_path / "again", HOSTILE),
        HOSTILE,
        settings=made.settings(data="<script>x</script>"),
        versions={"<u>": "<script>y</script>"},
    )
    predictions = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_bytes(
        predictions.replace("0/3.png", "0/<b>\udce9.png").encode(errors="surrogateescape")
    )
    with (run / "ledger.jsonl").open("a") as file:
        file.write('{"trial": "00001", "decision": "stop", "reason": "<script>z</script>"}\n')
    text = keep_report(run, data).read_text(encoding="utf-8")
    found = Reader(text)
    assert "<script" not in text.lower()
    assert not {tag for tag, _ in found.tags} & {"script", "b\udce9.png", "i", "u"} - {"i"}
    for name in HOSTILE:
        assert " ".join(name.split()) in found.words
        assert html.escape(name).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    assert "<b>?.png" in found.words  # bytes that are no UTF-8
    assert "49" not in found.words.split("quotes' {{")[1][:10]  # and no template inside of a template


def test_a_search_at_work_is_shown_as_it_stands(tmp_path: Path) -> None:
    run = made.searching(tmp_path / "run", {"00001": (0.4, 0.6), "00002": (0.5,)})
    found = Reader(write_report(run).read_text(encoding="utf-8"))
    assert "Leading of 4 trials: 4 inner units at learning rate 0.01" in found.words
    assert "2 epochs so far" in found.words and "waiting" in found.words
    assert "Worst mistakes" not in found.words
    assert not [a for t, a in found.tags if t == "meta" and a.get("http-equiv") == "refresh"]


def test_a_run_without_what_newer_searches_keep(run: Path) -> None:
    for name in ("predictions.csv", "ledger.jsonl", "trials.csv"):
        (run / name).unlink()
    found = Reader(write_report(run).read_text(encoding="utf-8"))
    assert "Most frequent mistakes" in found.words  # from the bundle's own figures
    assert "Worst mistakes" not in found.words and "Class by class" in found.words


def test_watching_ends_with_the_search(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    held: list[IO[bytes]] = []

    def begin() -> None:
        folder.rmdir()
        made.searching(folder, {})
        held.append(made.hold(folder))

    stages = [
        begin,
        lambda: made.history(folder, {"00000": (0.5,)}),
        lambda: (folder.rename(tmp_path / "old"), made.finished(folder, data)),
    ]
    said: list[tuple[str, bool, bool]] = []

    def written(page: Path, status: str) -> None:
        text = page.read_text(encoding="utf-8")
        said.append((status, 'http-equiv="refresh" content="1"' in text, "0.5000" in text))
        if stages:
            stages.pop(0)()

    out = tmp_path / "live.html"
    assert watch_run(folder, out, data=data, written=written, every_s=0.01) == out
    assert said == [
        ("starting", True, False),
        ("searching", True, False),
        ("searching", True, True),
        ("finished", False, True),
    ]
    held[0].close()


@pytest.mark.parametrize("left", [True, False])
def test_watching_ends_where_the_driver_was_killed(tmp_path: Path, left: bool) -> None:
    """Its lock is let go by the system, whether or not the file is there; run.json says `searching` for good."""
    folder = tmp_path / "run"
    made.searching(folder, {"00000": (0.5,)})
    if left:
        (folder / ".lock").write_text("process 1 on here")
    said: list[tuple[str, bool]] = []

    def written(page: Path, status: str) -> None:
        said.append((status, 'http-equiv="refresh"' in page.read_text(encoding="utf-8")))
        assert len(said) < 3

    watch_run(folder, written=written, every_s=0.01)
    assert said == [("no process searches here: `rayml tune --resume` goes on", False)]


def test_what_cannot_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="--out must be a file that can be written"):
        write_report(run, tmp_path / "none" / "report.html")
    for folder in (tmp_path, Path(), Path("/")):
        with pytest.raises(UsageError, match=r"--out must be a file that can be written\. Received: .* \(a folder\)"):
            write_report(run, folder)


def test_a_link_is_followed_where_the_user_named_it_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for link in (run / "report.html", tmp_path / "page.html"):
        link.symlink_to(tmp_path / "mine")
    write_report(run)
    assert (tmp_path / "mine").read_text() == "mine"
    write_report(run, tmp_path / "page.html")
    assert (tmp_path / "page.html").is_symlink() and (tmp_path / "mine").read_text().startswith("<!doctype html>")


def test_the_same_run_gives_the_same_page(run: Path, data: Path) -> None:
    assert keep_report(run, data).read_bytes() == write_report(run).read_bytes()


def test_many_classes_still_make_a_small_page(tmp_path: Path) -> None:
    names = tuple(f"class {i:03d}" for i in range(60))
    data = made.photos(tmp_path / "photos", names)
    run = made.finished(tmp_path / "run", made.photos(tmp_path / "three"))
    bundle = run / "best" / "bundle.json"
    bundle.write_text(json.dumps(json.loads(bundle.read_text()) | {"classes": list(names)}))
    made.predictions(data, names).write(run / "predictions.csv", 1.5)
    page = write_report(run)
    read = Reader(page.read_text(encoding="utf-8"))
    assert "matrix" not in {str(a.get("class")) for _, a in read.tags}
    assert "Most frequent mistakes" in read.words
    assert page.stat().st_size < 1_000_000


def test_plots_load_only_when_they_are_drawn() -> None:
    code = "import sys, rayml.report; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
