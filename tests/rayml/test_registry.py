"""Versions on disk: numbered, switched in one step, kept; whatever happens to a writer, a reader sees a whole state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rayml.bundle import Bundle
from rayml.errors import BundleError, RegistryError, UsageError
from rayml.registry import Registry, Shadow, State, find_bundle
from tests.serving.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three versions of a model."""
    folder = tmp_path_factory.mktemp("bundles")
    return [Bundle.open(write_tiny_bundle(folder / f"b{i}", temperature=float(i))) for i in (1, 2, 3)]


def _promote(registry: Registry, bundle: Bundle) -> int:
    with registry.writing():
        number = registry.add(bundle)
        registry.write_state("primaries", registry.state("primaries").with_live(number))
    return number


def test_versions_are_numbered_and_kept(tmp_path: Path, bundles: list[Bundle]) -> None:
    registry = Registry(tmp_path / "models")
    assert registry.names() == ()
    assert not Registry.is_one(tmp_path / "models")
    assert [_promote(registry, bundle) for bundle in bundles] == [1, 2, 3]
    assert Registry.is_one(tmp_path / "models")
    assert registry.names() == ("primaries",) and registry.versions("primaries") == (1, 2, 3)
    assert registry.state("primaries") == State(live=3, before=(1, 2))
    for number, bundle in enumerate(bundles, 1):
        kept = Bundle.open(registry.path("primaries", number))
        # Sealed bytes stay what they are: a registry's number is not written into them.
        assert (kept.digest, kept.record.version) == (bundle.digest, 3)
    assert registry.find("primaries", bundles[1].digest) == 2
    assert registry.find("primaries", "0" * 64) is None


def test_a_registry_of_one_process_holds_its_bundle_whatever_becomes_of_the_run(tmp_path: Path) -> None:
    run = write_tiny_bundle(tmp_path / "best")
    first = Bundle.open(run)
    registry = Registry(tmp_path / "models")
    with registry.writing():
        assert registry.add(first, lasting=False) == 3  # As its own bundle.json says.
    shutil.rmtree(run)
    second = Bundle.open(write_tiny_bundle(run, temperature=2.0))
    with registry.writing():
        assert registry.find("primaries", second.digest) is None
        assert registry.add(second) == 4
    assert Bundle.open(registry.path("primaries", 3)).digest == registry.digest("primaries", 3) == first.digest


def test_the_same_bundle_keeps_its_number(tmp_path: Path, bundles: list[Bundle]) -> None:
    registry = Registry(tmp_path)
    assert [_promote(registry, bundles[i]) for i in (0, 1, 0)] == [1, 2, 1]
    assert registry.state("primaries") == State(live=1, before=(2,))


def test_a_rollback_goes_to_what_was_live_before(tmp_path: Path, bundles: list[Bundle]) -> None:
    registry = Registry(tmp_path)
    for bundle in bundles[:2]:
        _promote(registry, bundle)
    with registry.writing():
        registry.write_state("primaries", registry.state("primaries").rolled_back())
    assert registry.state("primaries").live == 1
    _promote(registry, bundles[2])
    # Not to 2, which was left on purpose.
    assert registry.state("primaries").rolled_back().live == 1
    with pytest.raises(UsageError, match=r"an older version must have been live. Received: only version 1"):
        registry.state("primaries").rolled_back().rolled_back()
    with pytest.raises(UsageError, match="Received: none"):
        State().rolled_back()


def test_a_state_survives_its_file() -> None:
    for state in (State(), State(2, (1,), 3, Shadow(4, 0.5)), State(1, (), None, Shadow(2, 1))):
        assert State.from_json(state.to_json(), "live.json") == state


def test_a_shadow_ends_when_it_is_live() -> None:
    state = State(1, (), None, Shadow(2, 0.9))
    assert state.with_live(3).shadow == Shadow(2, 0.9)
    assert state.with_live(2) == State(2, (1,))
    assert state.with_live(1) == state
    back = State(2, (1,), None, Shadow(1, 0.9))
    assert back.rolled_back() == State(1)
    assert replace(back, shadow=Shadow(3, 0.9)).rolled_back() == State(1, (), None, Shadow(3, 0.9))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"format": 2, "live": 1, "before": [], "candidate": null, "shadow": null}',
        b'{"format": 1, "live": "1", "before": [], "candidate": null, "shadow": null}',
        b'{"format": 1, "live": true, "before": [], "candidate": null, "shadow": null}',
        b'{"format": 1, "live": -1, "before": [], "candidate": null, "shadow": null}',
        b'{"format": 1, "live": 1, "before": [null], "candidate": null, "shadow": null}',
        b'{"format": 1, "live": 1, "before": 1, "candidate": null, "shadow": null}',
        b'{"format": 1, "live": 1, "before": [], "candidate": null, "shadow": {"version": 1}}',
        b'{"format": 1, "live": 1, "before": [], "candidate": null, "shadow": {"version": 1, "floor": 2}}',
        b'{"format": 1, "live": 1, "before": [], "candidate": null, "shadow": {"version": null, "floor": 1}}',
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, bundles: list[Bundle], content: bytes) -> None:
    registry = Registry(tmp_path)
    _promote(registry, bundles[0])
    (tmp_path / "primaries" / "live.json").write_bytes(content)
    with pytest.raises(RegistryError, match=r"live\.json"):
        registry.state("primaries")


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("readme.txt", "readme.txt"),
        ("primaries/notes.txt", "notes.txt"),
        ("primaries/01/x", "01"),
        ("primaries/2", "2"),
        ("primaries/x/y", "x"),
        ("my model/1", "my model"),
    ],
)
def test_what_is_not_ours_is_named(tmp_path: Path, bundles: list[Bundle], where: str, named: str) -> None:
    _promote(Registry(tmp_path), bundles[0])
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).touch()
    with pytest.raises(RegistryError, match=f"Received: {named}$"):
        Registry(tmp_path)


def test_a_bundle_is_no_folder_of_models(bundles: list[Bundle]) -> None:
    assert not Registry.is_one(bundles[0].path)
    with pytest.raises(RegistryError, match="must hold models"):
        Registry(bundles[0].path)
    with pytest.raises(RegistryError, match=r"must hold models, a folder for each. Received: b"):
        Registry(bundles[0].path.parent)


def test_a_file_is_no_folder_of_models(tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(RegistryError, match="must be a readable folder"):
        Registry(tmp_path / "models")


def test_the_system_s_files_do_no_harm(tmp_path: Path, bundles: list[Bundle]) -> None:
    _promote(Registry(tmp_path), bundles[0])
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "lost+found").mkdir()  # A new ext4 volume has it.
    assert Registry(tmp_path).names() == ("primaries",)


def test_which_model(tmp_path: Path, bundles: list[Bundle]) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(UsageError, match=r"must hold one model. Received: no model"):
        registry.one_name(None)
    _promote(registry, bundles[0])
    assert registry.one_name(None) == registry.one_name("primaries") == "primaries"
    with registry.writing():
        assert registry.add(bundles[0], "other") == 1
    with pytest.raises(UsageError, match="Received: other, primaries") as caught:
        registry.one_name(None)
    assert "--name" in caught.value.hint
    with pytest.raises(UsageError, match="third must be a model"):
        registry.one_name("third")


def test_versions_and_names_that_are_not(tmp_path: Path, bundles: list[Bundle]) -> None:
    registry = Registry(tmp_path)
    _promote(registry, bundles[0])
    with pytest.raises(UsageError, match=r"must have a version 7. Received: the versions are 1"):
        registry.path("primaries", 7)
    with registry.writing():
        with pytest.raises(UsageError, match="version 7"):
            registry.write_state("primaries", State(live=7))
        for name in ("", "../x", "a/b", ".hidden", "x" * 65):
            with pytest.raises(UsageError, match="a model's name must be"):
                registry.add(bundles[0], name)
    assert registry.state("primaries") == State(live=1)


def test_a_bundle_that_was_damaged_in_the_registry_is_not_taken_again(tmp_path: Path, bundles: list[Bundle]) -> None:
    registry = Registry(tmp_path)
    _promote(registry, bundles[0])
    (registry.path("primaries", 1) / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx"), registry.writing():
        registry.add(bundles[0])


def test_a_bundle_that_changes_while_it_is_copied(tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b"))
    (bundle.path / "head.npz").write_bytes(b"x")
    registry = Registry(tmp_path / "models")
    with pytest.raises(BundleError, match=r"head\.npz"), registry.writing():
        registry.add(bundle)
    assert registry.versions("primaries") == ()
    assert registry.names() == ()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, bundles: list[Bundle]) -> None:
    (tmp_path / "file").touch()
    registry = Registry(tmp_path / "models")
    registry.root = tmp_path / "file"
    with pytest.raises(RegistryError, match="must be writable"), registry.writing():
        pass


def test_a_disk_that_is_full_leaves_the_old_state(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    _promote(registry, bundles[0])

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with registry.writing():
        with pytest.raises(RegistryError, match="No space left"):
            registry.add(bundles[1])
        with pytest.raises(RegistryError, match="No space left"):
            registry.write_state("primaries", State(live=1, candidate=1))
    assert registry.state("primaries") == State(live=1)
    assert sorted(path.name for path in (tmp_path / "primaries").iterdir()) == ["1", "live.json"]


def test_what_counts_is_on_disk_before_it_counts_and_its_name_after(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, model, fsync = Registry(tmp_path), tmp_path / "primaries", os.fsync
    forced: list[tuple[bool, int]] = []

    def written(place: Path, write: Callable[[], object]) -> None:
        def watched(descriptor: int) -> None:
            forced.append((place.exists(), os.fstat(descriptor).st_ino))
            fsync(descriptor)

        forced.clear()
        with monkeypatch.context() as patch, registry.writing():
            patch.setattr(os, "fsync", watched)
            write()
        for part in (place, *place.rglob("*")):
            assert (False, part.stat().st_ino) in forced, part
        assert (True, model.stat().st_ino) in forced

    written(model / "1", lambda: registry.add(bundles[0]))
    assert (False, tmp_path.stat().st_ino) in forced  # The model's own name.
    written(model / "live.json", lambda: registry.write_state("primaries", State(live=1)))


@pytest.mark.parametrize("calls", [0, 1, 5])
def test_a_full_disk_leaves_no_model_without_a_version(
    tmp_path: Path, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    left, fsync = calls, os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        if left == 0:
            raise OSError(28, "No space left on device")
        left -= 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    registry = Registry(tmp_path)
    with registry.writing(), pytest.raises(RegistryError, match="No space left"):
        registry.add(bundles[0])
    assert registry.names() == ()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_s_bundle(tmp_path: Path, bundles: list[Bundle]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(BundleError, match="expected a run with a bundle") as caught:
        find_bundle(run)
    assert "rayml tune" in caught.value.hint
    (run / "best").symlink_to(bundles[0].path)
    assert find_bundle(run).digest == find_bundle(bundles[0].path).digest == bundles[0].digest
    with pytest.raises(BundleError, match="does not exist"):
        find_bundle(tmp_path / "nothing")


# One process for each call that changes the disk, ended right before it; prints what a reader then sees.
_KILLED = """
import os, sys
from itertools import count
from rayml.bundle import Bundle
from rayml.registry import Registry

models, bundle = sys.argv[1], Bundle.open(sys.argv[2])
left = 0  # Calls until the end; 0 in the parent, which lives.

def audit(event, arguments):
    global left
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink") or writes:
        left -= 1
        if left == 0:
            os._exit(9)

sys.addaudithook(audit)
for fatal in count(1):
    pid = os.fork()
    if pid == 0:
        left = fatal
        registry = Registry(models)
        with registry.writing():
            number = registry.add(bundle)
            registry.write_state("primaries", registry.state("primaries").with_live(number))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    registry = Registry(models)
    versions = registry.versions("primaries")
    for version in versions:
        Bundle.open(registry.path("primaries", version))
    state = registry.state("primaries")
    print(code, state.live, *state.before, "of", *versions)
    if code != 9:
        break
"""


def test_a_writer_killed_at_any_step_leaves_a_whole_state(tmp_path: Path, bundles: list[Bundle]) -> None:
    models = tmp_path / "models"
    registry = Registry(models)
    _promote(registry, bundles[0])
    command = [sys.executable, "-c", _KILLED, str(models), str(bundles[1].path)]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) > 15, done
    # Killed before the version was there, between the two steps, and not at all.
    assert sorted(set(lines)) == ["0 2 1 of 1 2", "9 1 of 1", "9 1 of 1 2"]
    with registry.writing():
        pass  # The next writer clears up what they left.
    assert sorted(path.name for path in (models / "primaries").iterdir()) == ["1", "2", "live.json"]


def test_two_writers_take_turns(tmp_path: Path) -> None:
    first, second = Registry(tmp_path), Registry(tmp_path)
    waits, writes = threading.Event(), threading.Event()

    def write() -> None:
        with second.writing(waits.set):
            writes.set()

    with first.writing():
        thread = threading.Thread(target=write)
        thread.start()
        assert waits.wait(60)
        assert not writes.wait(0.3)
    thread.join(60)
    assert writes.is_set()


def test_the_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryError, match="must be writable"), Registry(tmp_path / "models").writing():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_writers_in_many_processes_give_each_bundle_a_number(tmp_path: Path, bundles: list[Bundle]) -> None:
    code = (
        "import sys; from rayml.registry import Registry, find_bundle\n"
        "r = Registry(sys.argv[1])\n"
        "with r.writing():\n"
        "    n = r.add(find_bundle(sys.argv[2])); r.write_state('primaries', r.state('primaries').with_live(n))\n"
    )
    commands = [[sys.executable, "-c", code, str(tmp_path / "m"), str(bundle.path)] for bundle in bundles]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    registry = Registry(tmp_path / "m")
    assert registry.versions("primaries") == (1, 2, 3)
    state = registry.state("primaries")
    assert sorted((state.live or 0, *state.before)) == [1, 2, 3]
    assert json.loads((tmp_path / "m" / "primaries" / "live.json").read_bytes())["live"] == state.live
