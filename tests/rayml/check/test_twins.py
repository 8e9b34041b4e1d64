from __future__ import annotations

import numpy as np
import pytest

from rayml.check import twins
from rayml.check.layout import Place
from rayml.check.pictures import Look
from rayml.check.twins import MAX_BITS, MAX_DIFFERENCE, exact_findings, exact_groups, near_findings, near_groups


def place(path: str) -> Place:
    split, label, _ = path.split("/")
    return Place(path, split, label)


@pytest.mark.parametrize(
    ("paths", "kinds"),
    [
        (("train/hat/1", "train/hat/2"), ["duplicates"]),
        (("train/hat/1", "validation/hat/2"), ["same_in_two_splits"]),
        (("train/hat/1", "train/shoes/2"), ["same_under_two_labels"]),
        (("train/hat/1", "validation/shoes/2"), ["same_under_two_labels", "same_in_two_splits"]),
    ],
)
def test_what_equal_files_mean(paths: tuple[str, ...], kinds: list[str]) -> None:
    (group,) = exact_groups([*((place(path), "same") for path in paths), (place("train/hat/3"), "other")])
    findings = list(exact_findings([group]))
    assert [finding.kind for finding in findings] == kinds
    assert {finding.paths for finding in findings} == {paths}


def test_nearly_equal_pictures() -> None:
    def seen(path: str, bits: int, grey: int, sha256: str = "") -> tuple[Place, Look]:
        return place(path), Look(path, sha256 or path, (), np.uint64(bits), np.full(192, grey, np.uint8), True)

    items = [
        seen("train/hat/1", 0, 100),
        seen("validation/shoes/2", 0b11, 101),
        seen("train/hat/3", 0b11, 200),  # The hash alone is not enough.
        seen("train/skirt/4", 2**63, 50, "equal"),
        seen("train/skirt/5", 2**63, 50, "equal"),  # Equal bytes are told elsewhere.
        (place("train/skirt/6"), Look("train/skirt/6", "x", ())),  # Not decoded.
    ]
    assert [(finding.kind, finding.paths) for finding in near_findings(items)] == [
        ("similar_under_two_labels", ("train/hat/1", "validation/shoes/2")),
        ("similar_in_two_splits", ("train/hat/1", "validation/shoes/2")),
    ]
    assert list(near_findings([])) == []


@pytest.mark.parametrize("block", [(512, 16_384), (3, 7)])
def test_the_groups_are_those_of_comparing_each_with_each(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int]
) -> None:
    monkeypatch.setattr(twins, "_ROWS", block[0])
    monkeypatch.setattr(twins, "_COLUMNS", block[1])
    random = np.random.default_rng(3)
    seeds = random.integers(0, 2**64, 40, np.uint64, endpoint=False)
    hashes = seeds[random.integers(0, 40, 400)]
    for _ in range(6):  # At most six bits differ from the seed's, so from 0 to 12 between two of them.
        hashes = hashes ^ (np.uint64(1) << random.integers(0, 64, 400, np.uint64))
    means = random.integers(100, 104, (400, 192)).astype(np.uint8)
    means[::5] += 50

    linked = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= MAX_BITS
    linked &= np.abs(means[:, None].astype(int) - means[None, :]).mean(axis=2) <= MAX_DIFFERENCE
    expected, left = [], set(range(400))
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {int(other) for one in edge for other in np.flatnonzero(linked[one])} - group
        left -= group
        expected.append(sorted(group))
    expected = [group for group in expected if len(group) > 1]
    assert 10 < len(expected) < 200 and max(map(len, expected)) > 3
    assert sorted(near_groups(hashes, means)) == expected


def test_as_many_near_pictures_as_one_likes() -> None:
    hashes = np.zeros(4_000, np.uint64) ^ (np.uint64(1) << np.arange(4_000, dtype=np.uint64) % np.uint64(64))
    (group,) = near_groups(hashes, np.zeros((4_000, 192), np.uint8))
    assert group == list(range(4_000))
