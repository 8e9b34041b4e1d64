from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rayml.cli.download import download
from rayml.errors import RaymlError, UsageError
from rayml.progress import Progress
from tests.cli.file_server import Served, serving

DATA = bytes(range(256)) * 12_000  # 3 MB


def fetch(served: Served, path: Path, max_bytes: int = 10**7) -> bytes:
    download(served.url, path, max_bytes, 3, Progress(quiet=True), pause_s=0.0)
    assert not path.with_name(path.name + ".json").exists()
    return path.read_bytes()


@pytest.mark.parametrize("length", [True, False, "\xb2", "9" * 5000])
def test_a_whole_file(tmp_path: Path, length: bool | str) -> None:
    with serving(Served(DATA, length=length)) as served:
        assert fetch(served, tmp_path / "a") == DATA
        assert len(served.asked) == 1 and served.asked[0]["accept-encoding"] == "identity"


def test_it_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    with serving(Served(DATA, cuts=[1_000_000, 500_000])) as served:
        assert fetch(served, tmp_path / "a") == DATA
        starts = [int(asked.get("range", "bytes=0-")[6:-1]) for asked in served.asked]
        assert len(starts) == 3 and 0 == starts[0] < starts[1] < starts[2] <= 1_500_000


def test_a_later_run_goes_on(tmp_path: Path) -> None:
    with serving(Served(DATA, cuts=[1_000_000], statuses=[])) as served:
        served.cuts += [0] * 5
        with pytest.raises(RaymlError, match=r"cannot be fetched: (the connection broke off|no connection)") as raised:
            fetch(served, tmp_path / "a")
        assert "--archive FILE.zip" in raised.value.hint
        assert 0 < (tmp_path / "a").stat().st_size <= 1_000_000
        asked = len(served.asked)
        assert fetch(served, tmp_path / "a") == DATA
        assert "range" in served.asked[asked]


@pytest.mark.parametrize("change", ["etag", "ranges", "url"])
def test_another_file_is_fetched_anew(tmp_path: Path, change: str) -> None:
    with serving(Served(DATA, cuts=[1_000_000] + [0] * 5)) as served:
        with pytest.raises(RaymlError):
            fetch(served, tmp_path / "a")
        served.data = DATA[::-1]
        if change == "ranges":
            served.ranges = False
        elif change == "etag":
            served.etag = '"two"'
        else:
            served.url += "?other"
        assert fetch(served, tmp_path / "a") == DATA[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_what_cannot_be_recognised_is_fetched_anew(tmp_path: Path, etag: str) -> None:
    with serving(Served(DATA, etag=etag, cuts=[1_000_000])) as served:
        assert fetch(served, tmp_path / "a") == DATA
        assert all("range" not in asked for asked in served.asked)


def test_more_there_than_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA + b"more")
    with serving(Served(DATA)) as served:
        (tmp_path / "a.json").write_text(f'{{"url": "{served.url}", "etag": "\\"one\\""}}')
        assert fetch(served, tmp_path / "a") == DATA


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(tmp_path: Path) -> None:
    with serving(Served(DATA, statuses=[503, 429])) as served:
        assert fetch(served, tmp_path / "a") == DATA
        served.statuses = [404]
        with pytest.raises(RaymlError, match="404 Not Found"):
            fetch(served, tmp_path / "b")
        assert len(served.asked) == 4


@pytest.mark.parametrize("length", [True, False])
def test_too_long(tmp_path: Path, length: bool) -> None:
    with serving(Served(DATA, length=length)) as served, pytest.raises(RaymlError, match="at most 1000 bytes"):
        fetch(served, tmp_path / "a", max_bytes=1000)
    assert not (tmp_path / "a").exists() or (tmp_path / "a").stat().st_size <= 1000


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/a.zip"
        with pytest.raises(RaymlError, match="cannot be fetched: no connection") as raised:
            download(url, tmp_path / "a", 10**6, 1, Progress(quiet=True), pause_s=0.0)
    assert raised.value.exit_code == 1 and "\n" not in raised.value.message + raised.value.hint


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "photos.zip"])
def test_other_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="must begin with https"):
        download(url, tmp_path / "a", 1, 1, Progress(quiet=True))


@pytest.mark.parametrize("host", ["my..host", "a" * 64, ".host"])
def test_a_host_that_can_be_none(tmp_path: Path, host: str) -> None:
    with serving(Served(DATA, location=f"http://{host}/photos.zip")) as served:
        for url in (served.url, served.location):
            with pytest.raises(UsageError, match="it is no address, or leads to none"):
                download(url, tmp_path / "a", 1, 1, Progress(quiet=True), pause_s=0.0)
        assert len(served.asked) == 1
