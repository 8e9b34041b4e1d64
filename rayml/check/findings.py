"""What the data doctor found, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

KINDS: dict[str, Severity] = {
    # A search refuses the data, or what it measures is not true.
    "few_classes": "error",
    "missing_class": "error",
    "too_few_to_split": "error",
    "class_name": "error",
    "unreadable": "error",
    "truncated": "error",
    "unsupported_format": "error",
    "too_large": "error",
    "broken_link": "error",
    "same_in_two_splits": "error",
    "same_under_two_labels": "error",
    # It works, but probably not as meant.
    "similar_in_two_splits": "warning",
    "similar_under_two_labels": "warning",
    "duplicates": "warning",
    "missing_in_test": "warning",
    "similar_class_names": "warning",
    "imbalance": "warning",
    "few_photos": "warning",
    "tiny": "warning",
    "huge": "warning",
    "blank": "warning",
    "wrong_extension": "warning",
    "folder_in_class": "warning",
    "unused_picture": "warning",
    "suspect_label": "warning",
    "unknown_class": "warning",
    # Good to know.
    "similar": "note",
    "cmyk": "note",
    "rotated_by_exif": "note",
    "extreme_aspect": "note",
    "hidden": "note",
    "unused_file": "note",
    "link_loop": "note",
}
"""Every kind of finding with its severity; the names are stable."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Arguments:
        kind: one of `KINDS`.
        paths: what it is about, relative to the checked folder, with "/" between the parts.
        detail: one line for a person.
    """

    kind: str
    paths: tuple[str, ...]
    detail: str

    @property
    def severity(self) -> Severity:
        """How bad it is: follows from the kind."""
        return KINDS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """Plain values: `kind`, `severity`, `paths`, `detail`."""
        return {"kind": self.kind, "severity": self.severity, "paths": list(self.paths), "detail": self.detail}


@dataclass(frozen=True)
class Report:
    """What is in a folder and what was found there.

    Arguments:
        data: the folder, as it was given.
        classes: names of all class folders, sorted.
        splits: {split: {class: photos}}, zeros included; a folder of class folders alone is one split, "all".
        findings: the worst first.
    """

    data: str
    classes: tuple[str, ...]
    splits: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]

    @property
    def n(self) -> int:
        """How many photos there are."""
        return sum(sum(counts.values()) for counts in self.splits.values())

    def count(self, severity: Severity) -> int:
        """How many findings are as bad as this."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `rayml data check --json` prints them."""
        return {
            "data": self.data,
            "n": self.n,
            "classes": list(self.classes),
            "splits": self.splits,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
            "findings": [finding.to_json() for finding in self.findings],
        }


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Ordered by severity and kind; among one kind as they were found."""
    order = list(KINDS)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.kind)))


def in_one_line(findings: Iterable[Finding]) -> str:
    """Errors and warnings by kind, e.g. "2 same in two splits, 1 tiny"; "" where there are none."""
    counts = Counter(finding.kind for finding in findings if finding.severity != "note")
    return ", ".join(f"{counts[kind]} {kind.replace('_', ' ')}" for kind in KINDS if kind in counts)
