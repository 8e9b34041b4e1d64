from __future__ import annotations

import errno
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.errors import RaymlError, UsageError
from rayml.features import FeatureBank
from rayml.storage import BucketStore, alone, check_storage, open_store
from tests.rayml.test_features import D, digests, vectors


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "shared")
    return str(request.getfixturevalue("s3"))


def test_a_store_gives_back_what_was_put(root: str, tmp_path: Path) -> None:
    first, second = (open_store(root, "thing/one", tmp_path / cache) for cache in ("here", "there"))
    assert first.sizes() == {}
    first.put("a", [b"some", memoryview(b"thing")])
    first.put("b/c", [b""])
    first.put("a", [b"something"])  # The same again, as a task that is done twice writes it.
    for store in (first, second, pickle.loads(pickle.dumps(second))):
        assert store.sizes() == {"a": 9, "b/c": 0}
        assert store.local("a", 9).read_bytes() == b"something"
    assert open_store(root, "thing/two", tmp_path / "here").sizes() == {}
    assert open_store(root, "thing", tmp_path / "elsewhere").sizes() == {"one/a": 9, "one/b/c": 0}


def test_a_bucket_is_read_once_a_machine(s3: str, tmp_path: Path) -> None:
    BucketStore(s3, "x", tmp_path / "here").put("a", [b"first"])
    there = BucketStore(s3, "x", tmp_path / "there")
    copy = there.local("a", 5)
    copy.write_bytes(b"mine!")
    assert BucketStore(s3, "x", tmp_path / "there").local("a", 5).read_bytes() == b"mine!"
    copy.write_bytes(b"cut")  # A copy that is not whole is made again.
    assert there.local("a", 5).read_bytes() == b"first"
    with pytest.raises(RaymlError, match=r"could not be read \(gone\)"):
        there.local("gone", 5)
    assert sorted(path.name for path in (tmp_path / "there").iterdir() if path.name[0] != ".") == ["a"]


def test_a_bank_in_a_bucket_is_shared(s3: str, tmp_path: Path) -> None:
    def bank(machine: str) -> FeatureBank:
        return FeatureBank(open_store(s3, "features/key", tmp_path / machine), D)

    ours, theirs = bank("here"), bank("there")
    ours.write(digests("a", "b"), vectors(2, 1))
    theirs.write(digests("c"), vectors(1, 2))
    late = bank("late")
    assert len(late) == 3
    assert not list((tmp_path / "late").rglob("*.npy"))  # Opening reads the indexes alone.
    expected = np.stack([vectors(1, 2)[0], vectors(2, 1)[0]])
    np.testing.assert_array_equal(late.rows(digests("c", "a")), expected)
    np.testing.assert_array_equal(bank("here").rows(digests("c", "a")), expected)


def test_an_index_without_its_array_counts_as_not_there(s3: str, tmp_path: Path) -> None:
    store = open_store(s3, "features/half", tmp_path / "here")
    store.put("x.sha256", [bytes.fromhex(digests("a")[0])])
    assert len(FeatureBank(store, D)) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("hdfs://host/x", "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("s3://", "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("s3://key:secret@bucket/x", "must be without credentials"),
        ("s3://bucket/x?region=a&nonsense=1", "must be an address"),
        ("", "must be a folder or a bucket"),
    ],
)
def test_what_is_no_storage_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        check_storage(wrong)
    assert "secret" not in caught.value.message


def test_a_folder_need_not_be_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_storage("shared") == str(tmp_path / "shared")
    (tmp_path / "file").write_text("")
    for wrong in ("file", "file/below"):
        with pytest.raises(UsageError, match="must be a folder or a bucket"):
            check_storage(wrong)


def test_a_bucket_that_is_not_there(s3: str) -> None:
    assert check_storage(s3) == s3
    with pytest.raises(UsageError, match="a bucket that is there"):
        check_storage("s3://no-such-bucket/prefix")


def test_a_bucket_that_does_not_answer(s3_unreachable: str, tmp_path: Path) -> None:
    with pytest.raises(RaymlError, match="cannot be used"):
        check_storage(s3_unreachable)
    with pytest.raises(RaymlError, match="could not be listed"):
        open_store(s3_unreachable, "x", tmp_path).sizes()


class Forbidding(BaseHTTPRequestHandler):
    """S3 to somebody without rights."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST = do_HEAD

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_bucket_that_may_not_be_used(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        try:
            with pytest.raises(RaymlError, match=r"cannot be used: .*ACCESS_DENIED") as caught:
                check_storage(s3)
            assert "credentials and their rights" in caught.value.hint
            store = open_store(s3, "x", tmp_path)
            for act in (store.mark, lambda: store.put("a", [b"a"]), lambda: store.local("b", 1)):
                with pytest.raises(RaymlError, match=r"s3://bucket/some/prefix/x could not be .*ACCESS_DENIED"):
                    act()
        finally:
            server.shutdown()


def test_a_mark_is_known_on_another_machine(root: str, tmp_path: Path) -> None:
    here, there = (open_store(root, "marked", tmp_path / cache) for cache in ("here", "there"))
    mark = here.mark()
    assert here.mark() == there.mark() == mark
    there.check_mark(mark)
    with pytest.raises(RaymlError, match=r"the same place on every machine\. Received: another one, or nothing"):
        open_store(root, "unmarked", tmp_path / "here").check_mark(mark)


def test_two_that_mark_at_once_know_both_marks(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (open_store(root, "marked-twice", tmp_path / cache) for cache in ("here", "there"))
    with monkeypatch.context() as patched:
        patched.setattr(type(here), "sizes", lambda _: {})  # Neither sees the other's yet.
        marks = [here.mark(), there.mark()]
    assert len({*marks}) == 2
    for store in (here, there):
        for mark in marks:
            store.check_mark(mark)
        assert store.mark() == min(marks)


@pytest.fixture
def s3_unreachable(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # The discard port.
    yield s3


def test_one_at_a_time_or_at_once(tmp_path: Path) -> None:
    with alone(tmp_path, "one") as first, alone(tmp_path, "one", wait=False) as second:
        assert (first, second) == (True, False)
    with alone(tmp_path, "one", wait=False) as first:
        assert first


def test_a_folder_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("rayml.storage.fcntl.flock", refuse)
    with pytest.raises(RaymlError, match=r"files can be locked\. Received: No locks"), alone(tmp_path, "one"):
        pass
