"""The figures of docs/cluster.md are those of bench/results, and what is said to follow from them does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.k8s.rendered import ROOT

TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SIZES = (1e5, 1e6, 1e7, 1e8)


def result(name: str) -> dict[str, Any]:
    content = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def said(pattern: str) -> list[float]:
    """The numbers of the one place that fits the pattern."""
    (found,) = re.finditer(pattern, TEXT)
    return [float(number.replace(",", "")) for number in found.groups()]


def test_what_was_measured() -> None:
    grid = result("grid")
    run = grid["backbones"]["xception"]["first_run_s"]
    pass_s, photos, cores = run["features"]["median"], grid["photos"], grid["machine"]["cores"]
    core_s = pass_s * cores
    expected = [core_s / photos, pass_s, photos, cores]
    assert said(r"c = ([\d.]+): ([\d.]+) s for ([\d,]+) photos on (\d+) cores") == pytest.approx(expected, rel=0.05)
    assert said(r"([\d.]+) core-hours of pass for") == pytest.approx([core_s / 3600], rel=0.1)
    assert said(r"\| ([\d.]+) s for 12 trials") == pytest.approx([run["search"]["median"]], rel=0.05)
    entries = result("scale")["entries"]
    few, many = (entries[count]["open"]["private_mib"]["median"] for count in ("34090", "340900"))
    kilobytes = (many - few) * 2**20 / (340900 - 34090) / 1000
    assert said(r"N x ([\d.]+) kB for the manifest") == pytest.approx([kilobytes], rel=0.05)
    assert said(r"(\d+) MiB at 340,900 photos") == pytest.approx([many], rel=0.02)
    replica = max(one["rss_mb"] for one in result("serving_start_xception")["processes"] if "Replica" in one["name"])
    assert said(r"\| (\d+) MB, with the model's weights") == pytest.approx([replica], rel=0.05)


def test_what_follows() -> None:
    (core_s,) = said(r"c = ([\d.]+): ")
    four = r"[^\d|]*([\d,.]+) \|" * 4
    assert said(rf"\| pass, core-hours \|{four}") == pytest.approx([n * core_s / 3600 for n in SIZES], rel=0.02)
    minutes = [n * core_s / 64 / 60 for n in SIZES]
    assert said(r"16 cores \| ([\d.]+) min \| ([\d.]+) min \| ([\d.]+) h \| ([\d.]+) h \|") == pytest.approx(
        [minutes[0], minutes[1], minutes[2] / 60, minutes[3] / 60], rel=0.06
    )
    (each,) = said(r"N x ([\d.]+) kB for the manifest")
    memory = said(r"memory for photos \| ([\d.]+) MB \| ([\d.]+) GB \| ([\d.]+) GB \| \*\*([\d.]+) GB\*\* \|")
    assert memory == pytest.approx([each * 100, each, each * 10, each * 100], rel=0.02)
