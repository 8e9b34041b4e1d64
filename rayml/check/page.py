"""A report as one HTML page with thumbnails: no script, nothing loaded from elsewhere, names of files only as text."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from itertools import groupby
from pathlib import Path

from PIL import Image

from rayml.check.findings import Finding, Report
from rayml.errors import InputError
from rayml.folders import printable
from rayml.images import DEFAULT_LIMITS, load_pixels
from rayml.page_file import write_page_file

MAX_OF_A_KIND = 60  # Findings shown of each kind ...
MAX_THUMBNAILS = 600  # ... and pictures of all kinds together, at some 3 KB each.
MAX_OF_A_FINDING = 8
_THUMBNAIL_PX = 112

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --error: #c0262d; --warning: #9a6700; --note: #57606a }
@media (prefers-color-scheme: dark) { :root { --error: #ff7b72; --warning: #e3b341; --note: #9aa4af } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line) }
th { text-align: left } td, th + th { text-align: right; font-variant-numeric: tabular-nums }
section { margin-top: 2.5rem } h2 { margin: 0 } .error { color: var(--error) } .warning { color: var(--warning) }
.note { color: var(--note) } article { border-top: 1px solid var(--line); padding: .7rem 0 } p { margin: .2rem 0 }
figure { display: inline-block; margin: .4rem .8rem .4rem 0; width: 8rem; vertical-align: top }
img { width: 7rem; height: 7rem; border-radius: 6px; display: block } .wide { overflow-x: auto }
figcaption { font-size: .75rem; overflow-wrap: anywhere }
"""


def write_page(path: Path, report: Report, root: Path) -> None:
    """Write the page, whole or not at all.

    Arguments:
        path: the file, replaced if it is there.
        report: what was found.
        root: the checked folder, for the thumbnails.

    Raises:
        UsageError: it cannot be written.
    """
    write_page_file(path, "--html", page(report, root).encode())


def page(report: Report, root: Path) -> str:
    """The page's HTML; thumbnails are squares, as the classifier sees them."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    counts = ", ".join(f"{report.count(severity)} {severity}s" for severity in ("error", "warning", "note"))
    heads = "".join(f"<th scope=col>{_text(split)}</th>" for split in report.splits)
    rows = "".join(
        f"<tr><th scope=row>{_text(label)}</th>"
        + "".join(f"<td>{counts_of.get(label, 0)}</td>" for counts_of in report.splits.values())
        + "</tr>"
        for label in report.classes
    )
    thumbnails = _Thumbnails(root)
    sections = "".join(
        _section(kind, list(group), thumbnails) for kind, group in groupby(report.findings, lambda one: one.kind)
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>Photos of {_text(report.data)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>Photos of {_text(report.data)}</h1>"
        f"<p>{report.n} photos in {len(report.classes)} classes: {counts}.</p>"
        f"<div class=wide><table><thead><tr><th scope=col>class</th>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"{sections or '<p>Nothing was found.</p>'}</main></body></html>\n"
    )


def _section(kind: str, findings: list[Finding], thumbnails: _Thumbnails) -> str:
    shown = "".join(_article(finding, thumbnails) for finding in findings[:MAX_OF_A_KIND])
    rest = len(findings) - MAX_OF_A_KIND
    more = f"<p>and {rest} more (--json names them)</p>" if rest > 0 else ""
    severity = findings[0].severity
    title = f"{_text(kind.replace('_', ' ').capitalize())} <small class={severity}>{severity}, {len(findings)}</small>"
    return f"<section><h2>{title}</h2>{shown}{more}</section>"


def _article(finding: Finding, thumbnails: _Thumbnails) -> str:
    figures = "".join(
        f"<figure>{thumbnails.image(path)}<figcaption>{_text(path)}</figcaption></figure>"
        for path in finding.paths[:MAX_OF_A_FINDING]
    )
    rest = len(finding.paths) - MAX_OF_A_FINDING
    return f"<article><p>{_text(finding.detail)}</p>{figures}{f'<p>and {rest} more</p>' if rest > 0 else ''}</article>"


class _Thumbnails:
    """Pictures for the page until there are `MAX_THUMBNAILS`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._left = MAX_THUMBNAILS

    def image(self, path: str) -> str:
        """An `<img>`, or nothing where there is no picture to show."""
        full = self._root / path
        try:
            if self._left <= 0 or not full.is_file() or full.stat().st_size > DEFAULT_LIMITS.max_bytes:
                return ""
            pixels = load_pixels(full.read_bytes(), _THUMBNAIL_PX)
        except (InputError, OSError):
            return ""
        self._left -= 1
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=70)
        return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}">'


def _text(text: str) -> str:
    return html.escape(printable(text))
