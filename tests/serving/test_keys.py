"""API keys: who passes, and what a change of the file does."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

import pytest

from rayml.errors import InputError, UsageError
from serving import keys
from serving.keys import ApiKeys, read_keys


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with two keys, looked at each time."""
    monkeypatch.setattr(keys, "_CHECK_EVERY_S", 0.0)
    path = tmp_path / "keys"
    path.write_text("# the first\nalpha\n\n  beta  \n")
    return path


def _passes(known: ApiKeys, headers: dict[str, str]) -> bool:
    try:
        known.check(headers)
    except InputError as error:
        assert (error.status, error.code) == (401, "unauthorized")
        return False
    return True


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"authorization": "Bearer alpha"}, True),
        ({"authorization": "bearer beta"}, True),
        ({"x-api-key": "alpha"}, True),
        ({}, False),
        ({"authorization": ""}, False),
        ({"authorization": "Bearer"}, False),
        ({"authorization": "Bearer "}, False),
        ({"x-api-key": ""}, False),
        ({"authorization": "Bearer alph"}, False),
        ({"authorization": "Bearer alphaa"}, False),
        ({"authorization": "Bearer ALPHA"}, False),
        ({"authorization": "Basic alpha"}, False),
        ({"authorization": "Bearer # the first"}, False),
        ({"authorization": "Bearer \udcff"}, False),
        ({"authorization": "Bearer " + "a" * 100_000}, False),
    ],
)
def test_who_passes(path: Path, headers: dict[str, str], passes: bool) -> None:
    assert _passes(ApiKeys(path), headers) is passes


def test_every_key_is_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    known = ApiKeys(path)
    for given in ("alpha", "x"):
        compared.clear()
        _passes(known, {"x-api-key": given})
        assert len(compared) == 2 and {len(side) for pair in compared for side in pair} == {32}


def test_a_changed_file_counts_at_once(path: Path) -> None:
    known = ApiKeys(path)
    path.write_text("gamma\n")
    assert _passes(known, {"x-api-key": "gamma"})
    assert not _passes(known, {"x-api-key": "alpha"})
    new = path.with_name("new")
    new.write_text("delta\n")
    new.replace(path)
    assert _passes(known, {"x-api-key": "delta"})


def test_a_file_that_is_emptied_closes_the_service(path: Path) -> None:
    known = ApiKeys(path)
    path.write_text("# none\n")
    assert not _passes(known, {"x-api-key": "alpha"})


def test_keys_stay_while_the_file_is_away_or_malformed(path: Path) -> None:
    known = ApiKeys(path)
    path.write_bytes(b"\xff\xfe")
    assert _passes(known, {"x-api-key": "alpha"})
    path.unlink()
    assert _passes(known, {"x-api-key": "alpha"})


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"two words\n", b"k\xc3\xa9y\n", b"k" * 513, b"a\x00b"])
def test_files_that_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="key"):
        ApiKeys(path)


def test_a_missing_file_is_refused_and_keys_are_never_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be readable"):
        read_keys(tmp_path / "none")
    path = tmp_path / "keys"
    path.write_text("secret words\n")
    with pytest.raises(UsageError) as caught:
        read_keys(path)
    assert "secret" not in caught.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(UsageError, match="must be readable"):
        ApiKeys(path)
