"""Pictures that come twice: the same bytes, or nearly the same picture.

Nearly the same are two pictures whose perceptual hashes differ in at most `MAX_BITS` of 64 and whose 8 x 8 thumbnails
differ by at most `MAX_DIFFERENCE` grey levels on average. The hash alone is not enough: on photos of garments it also
takes two pairs of jeans on the same floor for one.

Pairs are searched among N pictures without N x N comparisons (multi-index hashing, Norouzi et al. 2012, CVPR): hashes
that differ in at most k bits agree wholly in at least one of k + 1 bands, so only pictures with an equal band are
compared, in NumPy and in blocks of bounded size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rayml.check.findings import Finding
from rayml.check.layout import Place
from rayml.check.pictures import Look

MAX_BITS = 8
MAX_DIFFERENCE = 6.0
_ROWS, _COLUMNS = 512, 16_384  # Compared at once: 8 million hashes, at most some 200 MB where all of them are near.


def exact_groups(items: Iterable[tuple[Place, str]]) -> list[list[Place]]:
    """Photos with the same bytes, in groups of two and more.

    Arguments:
        items: each photo with the sha256 of its bytes.
    """
    by_content: defaultdict[str, list[Place]] = defaultdict(list)
    for place, sha256 in items:
        by_content[sha256].append(place)
    return [group for group in by_content.values() if len(group) > 1]


def exact_findings(groups: Iterable[Sequence[Place]]) -> Iterator[Finding]:
    """What equal bytes mean where they lie."""
    for group in groups:
        paths = tuple(place.path for place in group)
        labels, splits = sorted({place.label for place in group}), sorted({place.split for place in group})
        if len(labels) > 1:
            detail = f"the same file under {' and '.join(labels)}: one of them is wrong"
            yield Finding("same_under_two_labels", paths, detail)
        if len(splits) > 1:
            detail = f"the same file in {' and '.join(splits)}: what is measured there is too good"
            yield Finding("same_in_two_splits", paths, detail)
        if len(labels) == len(splits) == 1:
            yield Finding("duplicates", paths, f"the same file {len(group)} times: it counts as often")


def near_findings(items: Sequence[tuple[Place, Look]]) -> Iterator[Finding]:
    """Groups of nearly equal pictures; those with equal bytes stand for one.

    Arguments:
        items: photos with the look at each; those without a hash are left out.
    """
    first: dict[str, tuple[Place, Look]] = {}
    for place, seen in items:
        if seen.hash is not None:
            first.setdefault(seen.sha256, (place, seen))
    places = [place for place, _ in first.values()]
    if not places:
        return
    hashes = np.array([seen.hash for _, seen in first.values()], np.uint64)
    means = np.stack([seen.means for _, seen in first.values() if seen.means is not None])
    for members in near_groups(hashes, means):
        group = [places[member] for member in members]
        paths = tuple(place.path for place in group)
        labels, splits = sorted({place.label for place in group}), sorted({place.split for place in group})
        if len(labels) > 1:
            yield Finding("similar_under_two_labels", paths, f"nearly the same picture under {' and '.join(labels)}")
        if len(splits) > 1:
            yield Finding("similar_in_two_splits", paths, f"nearly the same picture in {' and '.join(splits)}")
        if len(labels) == len(splits) == 1:
            yield Finding("similar", paths, f"{len(group)} pictures that are nearly the same")


def near_groups(hashes: NDArray[np.uint64], means: NDArray[np.uint8]) -> list[list[int]]:
    """Groups of two and more pictures that are linked by pairs of nearly equal ones.

    Arguments:
        hashes: (N,), 64 bits each.
        means: uint8 (N, D), what confirms a pair.

    Returns:
        Ascending numbers, the group with the smallest first.
    """
    group: NDArray[np.signedinteger] = np.arange(len(hashes))
    for bucket in _buckets(hashes):
        for rows, columns in _blocks(bucket):
            near = np.bitwise_count(hashes[rows][:, None] ^ hashes[columns][None, :]) <= MAX_BITS
            found_rows, found_columns = np.nonzero(near)
            one, other = rows[found_rows], columns[found_columns]
            apart = group[one] != group[other]  # What is in one group already needs no further proof.
            one, other = one[apart], other[apart]
            same = _look_alike(means, one, other)
            if same.any():
                group = _merged(group, one[same], other[same])
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for member, its in enumerate(group.tolist()):
        groups[its].append(member)
    return [members for members in groups.values() if len(members) > 1]


def _buckets(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """The numbers of pictures whose hashes agree in a band; any two that are near each other meet in one of them."""
    for band in np.array_split(np.arange(64, dtype=np.uint64), MAX_BITS + 1):
        keys = hashes & np.bitwise_or.reduce(np.uint64(1) << band)
        order = np.argsort(keys, kind="stable")
        changes = np.flatnonzero(np.diff(keys[order])) + 1
        yield from (bucket for bucket in np.split(order, changes) if len(bucket) > 1)


def _blocks(bucket: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows and columns of the upper triangle of a bucket's comparisons."""
    for top in range(0, len(bucket), _ROWS):
        for left in range(top, len(bucket), _COLUMNS):
            yield bucket[top : top + _ROWS], bucket[left : left + _COLUMNS]


def _look_alike(means: NDArray[np.uint8], one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of the pairs have nearly equal thumbnails, in pieces that fit into little memory."""
    alike = np.zeros(len(one), np.bool_)
    for at in range(0, len(one), _COLUMNS):
        piece = slice(at, at + _COLUMNS)
        difference = np.abs(means[one[piece]].astype(np.int16) - means[other[piece]])
        alike[piece] = difference.mean(axis=1) <= MAX_DIFFERENCE
    return alike


def _merged(group: NDArray[np.intp], one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.intp]:
    """The groups after joining those of each pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(group)
    links = coo_array((np.ones(len(one), np.int8), (group[one], group[other])), shape=(count, count))
    _, joined = connected_components(links, directed=False)
    return np.asarray(joined, np.intp)[group]
