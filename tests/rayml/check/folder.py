"""A folder of drawn photos in which nothing is wrong, and what the tests ask of a report."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from rayml.check.doctor import check_data
from rayml.check.findings import Finding, Report
from rayml.progress import Progress
from rayml.sample import draw, sample_seed

LABELS = ("hat", "shoes")
TRAIN, VALIDATION = 20, 2


def drawn(label: str, number: int, split: str = "train", size_px: int = 96) -> Image.Image:
    return draw(label, sample_seed(5, split, number), size_px)


def write_sound(root: Path) -> Path:
    for split, count in (("train", TRAIN), ("validation", VALIDATION)):
        for label in LABELS:
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                drawn(label, number, split).save(folder / f"{number}.jpg", quality=90)
    return root


def checked(root: Path) -> Report:
    return check_data(root, Progress(quiet=True))


def found(report: Report, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]
