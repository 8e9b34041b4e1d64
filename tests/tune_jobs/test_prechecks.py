from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayml.errors import UsageError
from rayml.sample import write_sample
from tests.tune_jobs.small import QUIET, settings
from tune_jobs.config import SearchSettings
from tune_jobs.job import Stages
from tune_jobs.prechecks import check


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data") / "photos"
    write_sample(made, train_per_class=2, validation_per_class=1)
    return made


def checked(chosen: SearchSettings) -> None:
    check(chosen, chosen.out.absolute(), Stages(QUIET), QUIET)


@pytest.mark.parametrize(
    ("name", "below", "said"),
    [
        ("out", "run", "--out"),
        ("out", "hat/deep/run", "--out"),
        ("cache", "cache", "the cache"),
        ("cache", ".", "the cache"),
        ("storage_path", "shared", "--storage-path"),
    ],
)
def test_nothing_is_written_among_the_classes(name: str, below: str, said: str, photos: Path, tmp_path: Path) -> None:
    """Also by way of a link."""
    (tmp_path / "link").symlink_to(photos)
    for data, there in ((photos, photos), (photos, tmp_path / "link"), (tmp_path / "link", photos)):
        for split in ("train", "validation", "alone"):
            layout: dict[str, Any] = {"data": data} if split != "alone" else {"data": data / "train"}
            layout |= {} if split != "alone" else {"validation_fraction": 0.5}
            folder = there / split.replace("alone", "train") / below
            inside: Any = str(folder) if name == "storage_path" else folder
            with pytest.raises(UsageError) as caught:
                checked(settings(tmp_path, **layout, **{name: inside}))
            parent = data / split.replace("alone", "train")
            assert caught.value.message == (
                f"{said} must lie outside {parent}, whose folders are classes. Received: {folder}"
            )


def test_what_lies_beside_the_classes_may_be_written(photos: Path, tmp_path: Path) -> None:
    checked(settings(tmp_path, data=photos, out=photos / "run"))  # Beside train/ and validation/.
    beside = photos.with_name("photos-2")  # Begins like DATA.
    checked(settings(tmp_path, data=photos, out=beside / "run", cache=beside, storage_path="s3://bucket/photos"))
