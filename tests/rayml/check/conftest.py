from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.rayml.check.folder import write_sound


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in which nothing is wrong; not to be changed."""
    return write_sound(tmp_path_factory.mktemp("sound") / "photos")


@pytest.fixture
def photos(sound: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "photos"))
