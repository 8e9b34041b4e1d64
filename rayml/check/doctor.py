"""The whole examination, and its quick part for a search that is about to start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rayml.check.findings import Finding, Report, worst_first
from rayml.check.layout import Place, balance, read_layout
from rayml.check.pictures import Look, header_findings, look_at_all
from rayml.check.suspects import suspect_labels
from rayml.check.twins import exact_findings, exact_groups, near_findings
from rayml.data import Manifest
from rayml.pool import few_at_a_time
from rayml.predictor import Predictor
from rayml.progress import Progress


def check_data(root: Path, progress: Progress, predictor: Predictor | None = None) -> Report:
    """Examine a folder of labelled photos.

    Memory grows by about a kilobyte a photo; each file is read once, and once more with a bundle.

    Arguments:
        root: holds train/, validation/ and test/ with class folders, or class folders.
        progress: told how far it is.
        predictor: also look for labels that this bundle does not believe.

    Raises:
        DataError: it is no folder.
    """
    layout = read_layout(root)
    findings: list[Finding] = [*layout.findings, *balance(layout)]
    looks: list[tuple[Place, Look]] = []
    with progress.bar("check", len(layout.photos), "photos") as advance:
        seen = look_at_all(layout.root, [place.path for place in layout.photos], advance)
        for place, one in zip(layout.photos, seen, strict=True):
            findings += one.findings
            looks.append((place, one))
    findings += exact_findings(exact_groups((place, one.sha256) for place, one in looks if one.sha256))
    findings += near_findings(looks)
    if predictor is not None:
        decoded = [place for place, one in looks if one.decoded]
        with progress.bar("labels", len(decoded), "photos") as advance:
            findings += suspect_labels(predictor, layout.root, decoded, advance)
    return Report(str(root), layout.classes, layout.splits, worst_first(findings))


def quick_check(manifest: Manifest, progress: Progress | None = None) -> tuple[Finding, ...]:
    """What can be said of photos that were scanned already: by their digests, numbers and headers; nothing is decoded.

    Arguments:
        manifest: of the photos.
        progress: where to show what takes long; nowhere when left out.

    Returns:
        The worst first, notes left out.
    """
    places = [Place(photo.path, photo.split, photo.label) for photo in manifest.photos]
    layout = read_layout(manifest.root)
    layout.splits = manifest.counts()
    pairs = zip(places, (photo.sha256 for photo in manifest.photos), strict=True)
    findings = [*layout.findings, *balance(layout), *exact_findings(exact_groups(pairs))]
    bar = (progress or Progress(quiet=True)).bar("reading headers", len(places), "photos", lasting=False)
    # Opening files is waiting for the disk, or for a network behind it.
    with ThreadPoolExecutor() as pool, bar as advance:
        for found in few_at_a_time(pool, lambda place: header_findings(manifest.root, place.path), places):
            findings += found
            advance()
    return tuple(finding for finding in worst_first(findings) if finding.severity != "note")
