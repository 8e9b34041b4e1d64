"""The figures of docs/cluster.md are those of bench/results, and what is said to follow from them does."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.k8s.rendered import ROOT

TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SIZES = (1e5, 1e6, 1e7, 1e8)


def result(name: str) -> dict[str, Any]:
    content = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def said(pattern: str) -> list[str]:
    """The numbers of the one place that fits the pattern, as they are written."""
    (found,) = re.finditer(pattern, TEXT)
    return [number.replace(",", "") for number in found.groups()]


def rounded(values: list[float], like: list[str]) -> list[str]:
    """Each value with as many digits as the number in its place; zeros at the end of a whole number are no digits."""
    found = []
    for value, number in zip(values, like, strict=True):
        digits = number.replace(".", "").lstrip("0") if "." in number else number.rstrip("0")
        decimals = len(number.partition(".")[2])
        found.append(f"{float(f'{value:.{len(digits) - 1}e}'):.{decimals}f}")
    return found


def assert_said(pattern: str, values: list[float]) -> None:
    numbers = said(pattern)
    assert numbers == rounded(values, numbers)


def test_what_was_measured() -> None:
    grid = result("grid")
    run = grid["backbones"]["xception"]["first_run_s"]
    pass_s, photos, cores = run["features"]["median"], grid["photos"], grid["machine"]["cores"]
    core_s = pass_s * cores
    expected = [core_s / photos, pass_s, photos, cores]
    assert_said(r"c = ([\d.]+): ([\d.]+) s for ([\d,]+) photos on (\d+) cores", expected)
    assert_said(r"([\d.]+) core-hours of pass for", [core_s / 3600])
    assert_said(r"\| ([\d.]+) s for 12 trials", [run["search"]["median"]])
    entries = result("scale")["entries"]
    few, many = (entries[count]["open"]["private_mib"]["median"] for count in ("34090", "340900"))
    kilobytes = (many - few) * 2**20 / (340900 - 34090) / 1000
    assert_said(r"N x ([\d.]+) kB for the manifest", [kilobytes])
    assert_said(r"(\d+) MiB at 340,900 photos", [many])
    replica = max(one["rss_mb"] for one in result("serving_start_xception")["processes"] if "Replica" in one["name"])
    assert_said(r"\| (\d+) MB, with the model's weights", [replica])


def test_what_follows() -> None:
    core_s = float(said(r"c = ([\d.]+): ")[0])
    four = r"[^\d|]*([\d,.]+) \|" * 4
    assert_said(rf"\| pass, core-hours \|{four}", [n * core_s / 3600 for n in SIZES])
    minutes = [n * core_s / 64 / 60 for n in SIZES]
    assert_said(
        r"16 cores \| ([\d.]+) min \| ([\d.]+) min \| ([\d.]+) h \| ([\d.]+) h \|",
        [minutes[0], minutes[1], minutes[2] / 60, minutes[3] / 60],
    )
    each = float(said(r"N x ([\d.]+) kB for the manifest")[0])
    assert_said(
        r"memory for photos \| ([\d.]+) MB \| ([\d.]+) GB \| ([\d.]+) GB \| \*\*([\d.]+) GB\*\* \|",
        [each * 100, each, each * 10, each * 100],
    )
