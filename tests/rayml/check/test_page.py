from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from rayml.check import page as page_module
from rayml.check.findings import Finding, Report
from rayml.check.page import page, write_page
from rayml.errors import UsageError
from tests.rayml.check.folder import drawn


def report(*findings: Finding) -> Report:
    return Report("<photos>", ("hat & cap",), {"all": {"hat & cap": 1}}, findings)


def test_it_loads_and_runs_nothing(tmp_path: Path) -> None:
    drawn("hat", 0).save(tmp_path / "<img src=x onerror=alert(1)>.jpg")
    text = page(report(Finding("tiny", ("<img src=x onerror=alert(1)>.jpg",), "<b>4</b>")), tmp_path)
    assert "<img src=x" not in text and "<b>" not in text and "&lt;photos&gt;" in text and "hat &amp; cap" in text
    assert "<script" not in text and not re.search(
        r"""(src|href)=(?!"data:image/jpeg;base64,)""", re.sub("&lt;.*?&gt;", "", text)
    )
    style = re.search("<style>(.*)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in text
    assert text.count("data:image/jpeg;base64,") == 1


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_OF_A_KIND", 3)
    monkeypatch.setattr(page_module, "MAX_THUMBNAILS", 2)
    drawn("hat", 0).save(tmp_path / "a.jpg")
    text = page(
        report(*[Finding("tiny", ("a.jpg",), "small")] * 5, Finding("similar", ("a.jpg",) * 11, "alike")), tmp_path
    )
    assert text.count("<article>") == 4 and text.count("<img") == 2
    assert "and 2 more (--json names them)" in text and "<p>and 3 more</p>" in text


def test_a_picture_that_cannot_be_shown(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    text = page(report(Finding("unreadable", ("broken.jpg", "gone.jpg", "../up.jpg"), "broken")), tmp_path / "")
    assert "<img" not in text and "broken.jpg" in text
    assert "Nothing was found." in page(report(), tmp_path)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", report(Finding("tiny", ("a\udcff.jpg",), "x")), tmp_path)
    assert "a\\udcff.jpg" in (tmp_path / "a.html").read_text()
    with pytest.raises(UsageError, match="--html must be a file that can be written"):
        write_page(tmp_path / "no" / "a.html", report(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
