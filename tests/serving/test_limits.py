"""The limits that the page about serving promises."""

from __future__ import annotations

from pathlib import Path

from serving.limits import RequestLimits

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def test_the_page_has_the_limits_that_count() -> None:
    limits, mebibyte = RequestLimits(), 2**20
    rows = {
        "picture": f"{limits.max_image_bytes // mebibyte} MiB, {limits.max_pixels // 10**6} million pixels, ",
        "body": f"{limits.max_body_bytes / mebibyte:.1f} MiB ",
        "pictures": f"{limits.max_instances} |",
        "JSON": f"{limits.max_json_values // 10**6} million values, {limits.max_json_strings:,} strings or objects, ",
        "URLs": f"{limits.max_fetches} |",
        "time": f"{limits.deadline_s:g} s from arrival to answer, everything included; {limits.fetch_deadline_s:g} s",
        "requests for predictions at once": f"{limits.max_in_flight} |",
        "pictures at once of requests for more than one": f"{limits.max_batched}, ",
        "bodies and fetched pictures held at once": f"{limits.max_buffered_bytes // mebibyte} MiB |",
        "memory for decoding at once": f"{limits.max_decode_bytes // 2**30} GiB, ",
        "URLs fetched at once": f"{limits.max_fetches}: ",
    }
    page = _PAGE.read_text(encoding="utf-8")
    for what, amount in rows.items():
        assert f"\n| {what} | {amount}" in page, (what, amount)
