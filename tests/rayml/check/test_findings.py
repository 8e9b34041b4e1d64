from __future__ import annotations

from rayml.check.findings import KINDS, SEVERITIES, Finding, Report, in_one_line, worst_first


def test_kinds_are_listed_by_severity() -> None:
    ranks = [SEVERITIES.index(severity) for severity in KINDS.values()]
    assert ranks == sorted(ranks) and set(ranks) == {0, 1, 2}


def test_the_worst_comes_first_and_equals_keep_their_order() -> None:
    note, error, a, b = (
        Finding(k, (p,), "") for k, p in (("cmyk", ""), ("truncated", ""), ("tiny", "a"), ("tiny", "b"))
    )
    assert worst_first([note, a, b, error]) == (error, a, b, note)


def test_one_line_counts_what_is_worse_than_a_note() -> None:
    findings = [Finding("tiny", ("a",), ""), Finding("tiny", ("b",), ""), Finding("cmyk", ("c",), "")]
    findings.append(Finding("same_in_two_splits", ("d", "e"), ""))
    assert in_one_line(findings) == "1 same in two splits, 2 tiny"
    assert in_one_line(findings[2:3]) == ""


def test_a_report_as_plain_values() -> None:
    report = Report("x", ("a", "b"), {"all": {"a": 2, "b": 0}}, (Finding("missing_class", ("b",), "no photos of b"),))
    assert report.to_json() == {
        "data": "x",
        "n": 2,
        "classes": ["a", "b"],
        "splits": {"all": {"a": 2, "b": 0}},
        "errors": 1,
        "warnings": 0,
        "notes": 0,
        "findings": [
            {"kind": "missing_class", "severity": "error", "paths": ["b"], "detail": "no photos of b"},
        ],
    }
