from __future__ import annotations

import errno
from pathlib import Path
from typing import NoReturn

import pytest

from rayml import bundle
from rayml.bundle_writer import write_bundle
from rayml.errors import BundleError, RegistryError, UsageError
from rayml.registry import Registry
from tests.rayml import small


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 1), (errno.EACCES, 2)])
def test_a_full_or_broken_disk_is_no_wrong_usage(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = write_bundle(tmp_path / "best", small.contents())

    def refuse(*arguments: object) -> NoReturn:
        raise OSError(number, "no")

    monkeypatch.setattr(bundle.os, "fsync", refuse)
    with pytest.raises(BundleError, match="must be writable") as caught:
        write_bundle(tmp_path / "full", small.contents())
    assert caught.value.exit_code == code
    models = Registry(tmp_path / "models")
    with pytest.raises(RegistryError, match="must be writable") as refused, models.writing():
        models.add(sealed)
    assert refused.value.exit_code == code
    assert UsageError("wrong").exit_code == 2
