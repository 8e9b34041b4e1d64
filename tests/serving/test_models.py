"""A replica's versions without Ray: followed, loaded when asked for, changed under requests, tried as a shadow."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayml.bundle import Bundle
from rayml.errors import BundleError, InputError, RegistryError, ServerError, UsageError
from rayml.registry import Registry, Shadow, State
from serving import replicas as reporting
from serving.deploy import MIN_COMPARED, agreement, check_shadow, switch
from serving.limits import RequestLimits
from serving.models import POLL_S, Models
from serving.replicas import Report, Reporter, reports
from serving.served_model import ServedModel
from serving.shadow import ShadowRun
from serving.sources import BundleSource, RegistrySource
from tests.serving.tiny_bundle import CLASSES, picture, write_tiny_bundle

NAME = "primaries"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Three good versions, one that answers otherwise, one that is not reproduced here."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {str(i): write_tiny_bundle(folder / f"b{i}", temperature=float(i)) for i in (1, 2, 3)}
    made["wrong"] = write_tiny_bundle(folder / "wrong", wrong=True)
    made["foreign"] = write_tiny_bundle(folder / "foreign", golden_factor=1.5)
    return {name: Bundle.open(path) for name, path in made.items()}


@pytest.fixture
def registry(tmp_path: Path, bundles: dict[str, Bundle]) -> Registry:
    """Version 1 is live, 2 and 3 are stored, 4 answers otherwise, 5 is not reproduced here."""
    made = Registry(tmp_path / "models")
    with made.writing():
        assert [made.add(bundle) for bundle in bundles.values()] == [1, 2, 3, 4, 5]
        made.write_state(NAME, State(live=1))
    return made


Replica = Callable[[], Models]


@pytest.fixture
def replica(registry: Registry) -> Iterator[Replica]:
    """Starts replicas that follow the registry."""
    started: list[Models] = []

    def start() -> Models:
        models = Models(RegistrySource(registry, NAME), "auto", 1, RequestLimits(), Reporter(registry, NAME))
        started.append(models)
        models.start(lambda model: None)
        return models

    yield start
    for models in started:
        models.stop()


def _set(registry: Registry, state: State) -> None:
    with registry.writing():
        registry.write_state(NAME, state)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _version(models: Models) -> str:
    return models.live.facts.identity.version


def test_a_bundle_alone(bundles: dict[str, Bundle]) -> None:
    models = Models(BundleSource.read(bundles["1"].path), "auto", 1, RequestLimits())
    models.start(lambda model: None)
    identity = models.live.facts.identity
    assert (identity.name, identity.version, identity.bundle) == (NAME, "3", bundles["1"].digest)
    assert asyncio.run(models.get(NAME, "3")) is models.live
    assert models.versions(NAME) == [models.live.facts] and models.versions("other") == []
    for name, version, code in (("other", None, "unknown_model"), (None, "1", "unknown_version")):
        with pytest.raises(InputError) as caught:
            asyncio.run(models.get(name, version))
        assert (caught.value.status, caught.value.code) == (404, code)
    models.stop()


def test_the_registry_s_number_is_what_is_served(replica: Replica, bundles: dict[str, Bundle]) -> None:
    identity = replica().live.facts.identity
    assert (identity.version, identity.bundle) == ("1", bundles["1"].digest)


def test_a_version_takes_over_under_requests_and_none_fails(registry: Registry, replica: Replica) -> None:
    models = replica()
    warm: list[str] = []
    models._warm_up = lambda model: warm.append(model.facts.identity.version)
    seen: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            model = asyncio.run(models.get())
            answer = model.answers(model.predict_pixels(model.pixels(picture("red"))[np.newaxis]))[0]
            assert answer.label == "red"
            seen.append(model.facts.identity.version)

    thread = threading.Thread(target=ask)
    thread.start()
    _until(lambda: "1" in seen)
    _set(registry, State(live=2, before=(1,)))
    _until(lambda: seen[-1] == "2")
    stop.set()
    thread.join()
    assert seen == sorted(seen) and set(seen) == {"1", "2"}
    assert warm == ["2"]
    # The one before stays at hand.
    assert [facts.identity.version for facts in models.versions(NAME)] == ["2", "1"]


def test_versions_are_loaded_when_they_are_asked_for(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.models._NEXT_LOAD_S", 0.0)
    models = replica()

    async def ask() -> list[str]:
        found = await asyncio.gather(*(models.get(NAME, str(number)) for number in (2, 2, 1, 3)))
        return [model.facts.identity.version for model in found]

    assert asyncio.run(ask()) == ["2", "2", "1", "3"]
    assert [facts.identity.version for facts in models.versions(NAME)] == ["1", "3"]  # 2 has made room.
    with pytest.raises(InputError) as caught:  # And is not loaded again at once: two in turn would keep a core busy.
        asyncio.run(models.get(NAME, "2"))
    assert (caught.value.status, caught.value.code) == (503, "version_not_loaded")
    assert caught.value.retry_after_s is not None and 5 < caught.value.retry_after_s <= 10


def test_a_version_that_does_not_load_is_not_verified_for_every_request_and_takes_nobody_s_place(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.models._NEXT_LOAD_S", 0.0)
    models = replica()
    opened: list[int] = []
    load = models._open

    def counted(number: int) -> ServedModel:
        opened.append(number)
        return load(number)

    monkeypatch.setattr(models, "_open", counted)
    (registry.path(NAME, 3) / "bundle.json").write_bytes(b"{}")
    asyncio.run(models.get(NAME, "2"))
    for _ in range(3):
        for number in ("3", "5"):
            with pytest.raises(InputError) as caught:
                asyncio.run(models.get(NAME, number))
            assert (caught.value.status, caught.value.code) == (503, "version_not_loaded")
    assert opened == [2, 3, 5]
    assert [facts.identity.version for facts in models.versions(NAME)] == ["1", "2"]


def test_versions_asked_for_in_turn_are_not_loaded_one_after_the_other(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = replica()
    asyncio.run(models.get(NAME, "2"))
    for number in ("3", "5"):
        with pytest.raises(InputError) as caught:
            asyncio.run(models.get(NAME, number))
        assert (caught.value.status, caught.value.code) == (503, "version_not_loaded")
        assert caught.value.retry_after_s is not None and 3 < caught.value.retry_after_s <= 5
    assert asyncio.run(models.get(NAME, "2")).facts.identity.version == "2"
    monkeypatch.setattr("serving.models._NEXT_LOAD_S", 0.0)
    assert asyncio.run(models.get(NAME, "3")).facts.identity.version == "3"
    _set(registry, State(live=4, before=(1,)))  # What is made live keeps no such time.
    _until(lambda: _version(models) == "4")


def test_a_disk_that_hangs_keeps_the_event_loop_free(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    models = replica()
    hold = threading.Event()

    def hang(_source: RegistrySource, _version: int) -> Path:
        hold.wait(10)
        raise RegistryError("the folder must be readable")

    async def ask() -> InputError:
        asking = asyncio.ensure_future(models.get(NAME, "2"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        assert await models.get() is models.live
        hold.set()
        with pytest.raises(InputError) as caught:
            await asking
        return caught.value

    monkeypatch.setattr(RegistrySource, "path", hang)
    assert asyncio.run(ask()).code == "version_not_loaded"


def test_what_is_not_ours_in_the_folder_is_no_fault_of_the_server(registry: Registry, replica: Replica) -> None:
    models = replica()
    (registry.root / NAME / "notes.txt").touch()
    with pytest.raises(InputError) as caught:
        asyncio.run(models.get(NAME, "9"))
    assert (caught.value.status, caught.value.code) == (404, "unknown_version")
    assert asyncio.run(models.get(NAME, "2")).facts.identity.version == "2"


@pytest.mark.parametrize("version", ["0", "6", "01", "-1", "1.0", "", "latest", "../1", "٢", "9" * 100, "2\n"])
def test_versions_that_are_not(replica: Replica, version: str) -> None:
    with pytest.raises(InputError) as caught:
        asyncio.run(replica().get(NAME, version))
    assert (caught.value.status, caught.value.code) == (404, "unknown_version")


def test_a_version_that_does_not_load_never_answers(registry: Registry, replica: Replica) -> None:
    models = replica()
    _set(registry, State(live=5, before=(1,)))
    _until(lambda: bool(reports(registry, NAME)[0].failed))
    assert "golden logits" in reports(registry, NAME)[0].failed["5"]
    assert _version(models) == "1"
    with pytest.raises(InputError) as caught:
        asyncio.run(models.get(NAME, "5"))
    assert caught.value.status == 503
    _set(registry, State(live=2, before=(1,)))
    _until(lambda: _version(models) == "2")
    _until(lambda: not reports(registry, NAME)[0].failed)  # Said after it has changed.


def test_a_live_version_that_does_not_load_is_tried_again_after_a_while(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = replica()
    opened: list[int] = []

    def fail(number: int) -> ServedModel:
        opened.append(number)
        raise MemoryError

    load = models._open
    monkeypatch.setattr(models, "_open", fail)
    _set(registry, State(live=2, before=(1,)))
    _until(lambda: bool(opened))
    time.sleep(1.2)
    assert opened == [2]  # Not each time that it looks.
    monkeypatch.setattr(models, "_open", load)
    monkeypatch.setattr("serving.models._RETRY_S", 0.1)
    _until(lambda: _version(models) == "2")


def test_a_candidate_makes_no_room_for_what_a_request_names(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.models._NEXT_LOAD_S", 0.0)
    models = replica()
    _set(registry, State(live=1, candidate=2))
    _until(lambda: 2 in reports(registry, NAME)[0].ready)
    for number in ("3", "4"):
        asyncio.run(models.get(NAME, number))
    assert [facts.identity.version for facts in models.versions(NAME)] == ["1", "2", "4"]


def test_a_folder_that_is_damaged_while_it_is_served(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = replica()
    live = registry.root / NAME / "live.json"
    whole = live.read_bytes()
    live.write_bytes(b"{")
    told: list[str] = []
    monkeypatch.setattr("serving.models._log.error", lambda words, *values, **_: told.append(words % values))
    time.sleep(1.7)
    assert _version(models) == "1"
    assert len(told) == 1 and "stays at version 1" in told[0] and "live.json" in told[0]  # Looked at three times.
    live.write_bytes(whole.replace(b'"live": 1', b'"live": 2'))
    _until(lambda: _version(models) == "2")


def test_the_memory_is_put_in_order_after_each_version_and_a_failure_there_stops_nothing(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fail() -> None:
        asked.append(_version(models))
        raise ValueError("a kernel with other words")

    monkeypatch.setattr("serving.models._SETTLE_AFTER_S", 0.0)
    monkeypatch.setattr("serving.models.settle", fail)
    models = replica()
    _until(lambda: bool(asked))
    _set(registry, State(live=2))
    _until(lambda: asked == ["1", "2"])
    _set(registry, State(live=3))
    _until(lambda: _version(models) == "3")


def test_each_live_version_is_asked_to_group_its_pictures_and_a_failure_there_stops_nothing(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fail(model: ServedModel) -> None:
        asked.append(model.facts.identity.version)
        raise BundleError("its files have gone")

    monkeypatch.setattr("serving.models._SETTLE_AFTER_S", 0.0)
    monkeypatch.setattr(ServedModel, "group", fail)
    monkeypatch.setattr("serving.models.settle", lambda: asked.append("settled"))
    models = replica()
    _until(lambda: asked == ["1", "settled"])
    _set(registry, State(live=2))
    _until(lambda: asked[2:] == ["2", "settled"])
    assert _version(models) == "2"
    assert asyncio.run(models.get(version="3")).facts.identity.version == "3"  # Loaded for a request, and left so.
    time.sleep(3 * POLL_S)
    assert asked[4:] == []


def test_nothing_is_live(registry: Registry) -> None:
    _set(registry, State())
    with pytest.raises(UsageError, match="must be live"):
        Models(RegistrySource(registry, NAME), "auto", 1, RequestLimits())
    _set(registry, State(live=5))
    with pytest.raises(BundleError, match="golden"):
        Models(RegistrySource(registry, NAME), "auto", 1, RequestLimits(), Reporter(registry, NAME))
    assert reports(registry, NAME) == []


def test_a_pinned_version(registry: Registry, replica: Replica) -> None:
    models = replica()
    models.follow(RegistrySource(registry, NAME, pinned=3))
    _until(lambda: _version(models) == "3")
    _set(registry, State(live=2, before=(1,)))
    time.sleep(1.2)
    assert _version(models) == "3"
    models.follow(RegistrySource(registry, NAME, pinned=5))
    _until(lambda: "5" in reports(registry, NAME)[0].failed)
    assert _version(models) == "3"
    models.follow(RegistrySource(registry, NAME))
    _until(lambda: _version(models) == "2")


def _loads_slowly(models: Models) -> tuple[threading.Event, threading.Event]:
    """What is set when a version begins to load, and what lets it be loaded."""
    loading, hold = threading.Event(), threading.Event()
    load = models._open

    def slowly(number: int) -> ServedModel:
        loading.set()
        hold.wait(60)
        return load(number)

    models._open = slowly  # type: ignore[method-assign]
    return loading, hold


def test_another_place_to_follow_is_taken_while_a_version_loads(registry: Registry, replica: Replica) -> None:
    models = replica()
    loading, hold = _loads_slowly(models)
    _set(registry, State(live=2, before=(1,)))
    assert loading.wait(60)
    asking = threading.Thread(target=models.follow, args=(RegistrySource(registry, NAME, pinned=3),))
    asking.start()  # As an event loop does, on which every request waits meanwhile.
    asking.join(10)
    assert not asking.is_alive()
    hold.set()
    _until(lambda: _version(models) == "3")


# --- deploy: ready everywhere, then live everywhere, or neither


def test_all_replicas_change_or_none(registry: Registry, replica: Replica) -> None:
    replicas = [replica() for _ in range(3)]
    said: list[str] = []
    with registry.writing():
        assert switch(registry, NAME, registry.state(NAME).with_live(2), said.append) == 3
    assert [_version(models) for models in replicas] == ["2"] * 3
    assert registry.state(NAME) == State(live=2, before=(1,))
    assert said == ["3 replicas make version 2 ready ..."]
    with pytest.raises(ServerError, match="golden logits"), registry.writing():
        switch(registry, NAME, registry.state(NAME).with_live(5))
    assert [_version(models) for models in replicas] == ["2"] * 3
    assert registry.state(NAME) == State(live=2, before=(1,))


def test_one_replica_that_cannot_keeps_all_at_the_old_version(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = [replica(), replica()]

    def no_memory(_number: int) -> None:
        raise MemoryError

    monkeypatch.setattr(replicas[1], "_open_other", no_memory)
    with (
        pytest.raises(ServerError, match=r"every replica must .*MemoryError"),
        registry.writing(),
    ):
        switch(registry, NAME, registry.state(NAME).with_live(2))
    assert [_version(models) for models in replicas] == ["1", "1"]
    assert registry.state(NAME) == State(live=1)


def test_a_replica_that_says_nothing(registry: Registry, replica: Replica) -> None:
    models = replica()
    silent = {"live": models.live.facts.identity.to_dict(), "ready": [1], "failed": {}, "shadow": None}
    (registry.root / NAME / "replicas" / "elsewhere-1-a.json").write_text(json.dumps(silent))
    with (
        pytest.raises(ServerError, match="Received: 1 of 2 are not that far, such as elsewhere") as caught,
        registry.writing(),
    ):
        switch(registry, NAME, registry.state(NAME).with_live(2), timeout_s=3.0)
    assert (_version(models), registry.state(NAME)) == ("1", State(live=1))
    assert caught.value.hint.startswith("nothing has changed for clients")


def test_a_replica_that_never_changes_to_what_it_made_ready(registry: Registry, replica: Replica) -> None:
    models = replica()
    stuck = {"live": models.live.facts.identity.to_dict(), "ready": [1, 2], "failed": {}, "shadow": None}
    (registry.root / NAME / "replicas" / "elsewhere-1-a.json").write_text(json.dumps(stuck))
    with pytest.raises(ServerError, match="must be live in every replica") as caught, registry.writing():
        switch(registry, NAME, registry.state(NAME).with_live(2), timeout_s=3.0)
    assert "have answered with it meanwhile; version 1 is live again" in caught.value.hint
    assert registry.state(NAME) == State(live=1)
    _until(lambda: _version(models) == "1")


def test_another_bundle_under_the_number_that_is_live_is_not_taken_for_it(
    registry: Registry, replica: Replica, bundles: dict[str, Bundle]
) -> None:
    models = replica()
    stored = registry.path(NAME, 1)
    shutil.rmtree(stored)
    shutil.copytree(bundles["wrong"].path, stored)
    with pytest.raises(ServerError, match="another bundle under this number"), registry.writing():
        switch(registry, NAME, registry.state(NAME), timeout_s=3.0)
    assert models.live.facts.identity.bundle == bundles["1"].digest


def test_a_pinned_replica_is_not_waited_for(registry: Registry, replica: Replica) -> None:
    pinned, other = replica(), replica()
    pinned.follow(RegistrySource(registry, NAME, pinned=3))
    _until(lambda: [report.live for report in reports(registry, NAME) if report.pinned] == ["3"])
    said: list[str] = []
    with registry.writing():
        assert switch(registry, NAME, registry.state(NAME).with_live(2), said.append, timeout_s=10.0) == 1
    assert (_version(pinned), _version(other)) == ("3", "2")
    assert said == [
        "Left out: 1 replica that a Serve config file pins to a version.",
        "1 replica make version 2 ready ...",
    ]


def test_replicas_that_are_gone_do_not_count(registry: Registry, replica: Replica) -> None:
    replica()
    mine = reports(registry, NAME)
    assert [report.live for report in mine] == ["1"]
    folder = registry.root / NAME / "replicas"
    text = (folder / f"{mine[0].replica}.json").read_text()
    (folder / "elsewhere-1-a.json").write_text(text)
    os.utime(folder / "elsewhere-1-a.json", (0, 0))  # Silent for a long time.
    host = mine[0].replica.rsplit("-", 2)[0]
    (folder / f"{host}-4194999-a.json").write_text(text)  # No process has this number.
    (folder / "foreign.json").write_text("{")
    assert reports(registry, NAME) == mine
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"{mine[0].replica}.json", "foreign.json"])
    # A container of this machine that has its name counts processes in a way of its own.
    contained = f"{host.rpartition('-')[0]}-1-4194999-a"
    (folder / f"{contained}.json").write_text(text)
    assert {report.replica for report in reports(registry, NAME)} == {mine[0].replica, contained}


def test_a_replica_reports_while_it_loads(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_BEAT_S", 0.1)
    monkeypatch.setattr(reporting, "_GONE_S", 1.5)
    models = replica()
    loading, hold = _loads_slowly(models)
    _set(registry, State(live=1, candidate=2))
    assert loading.wait(60)
    time.sleep(2)
    assert [report.ready for report in reports(registry, NAME)] == [(1,)]
    hold.set()
    _until(lambda: reports(registry, NAME)[0].ready == (1, 2))


def test_a_step_that_fails_later_is_reported_so_far(registry: Registry, replica: Replica) -> None:
    replica()
    state = State(live=2, before=(1,), shadow=Shadow(9, 0.98))  # Nobody has this version.
    (registry.root / NAME / "live.json").write_bytes(state.to_json())
    _until(lambda: reports(registry, NAME)[0].live == "2")


@pytest.mark.parametrize("ended", [False, True])
def test_a_replica_that_is_no_longer_heard_of_has_ended_or_is_waited_for(
    registry: Registry, replica: Replica, ended: bool
) -> None:
    models = replica()
    other = registry.root / NAME / "replicas" / "elsewhere-1-a.json"
    report = {"live": models.live.facts.identity.to_dict(), "ready": [1], "failed": {}, "shadow": None}
    other.write_text(json.dumps(report))

    def vanish(_words: str) -> None:
        other.unlink() if ended else os.utime(other, (time.time() - 60,) * 2)

    with registry.writing():
        if ended:
            assert switch(registry, NAME, registry.state(NAME).with_live(2), vanish) == 1
        else:
            with pytest.raises(ServerError, match="Received: 1 of 2 are not that far, such as elsewhere"):
                switch(registry, NAME, registry.state(NAME).with_live(2), vanish, timeout_s=3.0)
    assert _version(models) == ("2" if ended else "1")


def test_without_a_server_only_the_folder_changes(registry: Registry) -> None:
    with registry.writing():
        assert switch(registry, NAME, registry.state(NAME).with_live(5)) == 0
    assert registry.state(NAME) == State(live=5, before=(1,))


def test_a_replica_that_cannot_report_serves_all_the_same(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(reporting._log, "warning", lambda words, *_: said.append(words))
    (registry.root / NAME / "replicas").touch()
    models = replica()
    _set(registry, State(live=2, before=(1,)))
    _until(lambda: _version(models) == "2")
    assert len(said) == 1 and "cannot report" in said[0]
    (registry.root / NAME / "replicas").unlink()  # It tries again.
    _until(lambda: [report.live for report in reports(registry, NAME)] == ["2"])


# --- shadow


def _answer(models: Models, label: str) -> None:
    model, source = models.live, picture(label)
    pixels = model.pixels(source)
    models.answered(model, source, pixels, model.answers(model.predict_pixels(pixels[np.newaxis]))[0].label, 0.001)


def _compared(registry: Registry) -> int:
    found = agreement(registry.state(NAME), reports(registry, NAME))
    return 0 if found is None else found.compared + found.dropped


def _show(registry: Registry, replicas: list[Models], count: int) -> None:
    """Pictures of all classes, as fast as the shadows take them."""
    _until(lambda: all(models._shadow is not None for models in replicas))
    for i in range(count):
        models = replicas[i % len(replicas)]
        assert models._shadow is not None
        _until(models._shadow._queue.empty)
        _answer(models, CLASSES[i % 3])
    _until(lambda: _compared(registry) == count)


def test_a_shadow_that_agrees_may_be_live(registry: Registry, replica: Replica) -> None:
    replicas = [replica(), replica()]
    _set(registry, State(live=1, shadow=Shadow(2, 0.98)))
    with pytest.raises(ServerError, match=f"compared on {MIN_COMPARED} pictures before it may be live. Received: 0"):
        check_shadow(registry, NAME, registry.state(NAME), 2)
    _show(registry, replicas, MIN_COMPARED + 20)
    found = agreement(registry.state(NAME), reports(registry, NAME))
    assert found is not None and found.share == 1.0 and not found.errors and not found.dropped
    assert found.live_ms is not None and found.live_ms["p50"] == pytest.approx(1.0)
    assert found.shadow_ms is not None and 0 < found.shadow_ms["p50"] <= found.shadow_ms["p99"]
    assert found.to_json()["agreement"] == 1.0
    check_shadow(registry, NAME, registry.state(NAME), 2)
    with registry.writing():
        assert switch(registry, NAME, registry.state(NAME).with_live(2)) == 2
    assert registry.state(NAME) == State(live=2, before=(1,))
    _until(lambda: all(models._shadow is None for models in replicas))


def test_a_shadow_that_agrees_on_just_the_floor_may_be_live(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = ({"p50": 1.0, "p99": 9.0}, {"p50": 2.0, "p99": 3.0})
    found = [
        Report(
            f"host-{i}",
            "1",
            shadow={
                **{"live": 1, "version": 2, "compared": 50, "agreed": 49, "dropped": 0, "unreadable": 0},
                **{"live_ms": times[i], "shadow_ms": times[1 - i], "error": None},
            },
        )
        for i in range(2)
    ]
    monkeypatch.setattr("serving.deploy.reports", lambda *_: found)
    check_shadow(registry, NAME, State(live=1, shadow=Shadow(2, 0.98)), 2)
    with pytest.raises(ServerError, match=r"Received: 0\.9800 of 100"):
        check_shadow(registry, NAME, State(live=1, shadow=Shadow(2, 0.99)), 2)
    both = agreement(State(live=1, shadow=Shadow(2, 0.98)), found)
    assert both is not None and both.live_ms == both.shadow_ms == {"p50": 2.0, "p99": 9.0}  # Of the slowest.


def test_comparisons_with_another_version_than_the_live_one_do_not_count() -> None:
    counts = {"agreed": 5, "dropped": 0, "unreadable": 0, "live_ms": None, "shadow_ms": None, "error": None}
    state = State(live=1, shadow=Shadow(2, 0.98))
    replicas = [
        Report(f"host-{live}-{version}", str(live), shadow={"live": live, "version": version, "compared": n, **counts})
        for live, version, n in ((1, 2, 10), (3, 2, 100), (1, 4, 1000))
    ]
    found = agreement(state, [*replicas, Report("host-0", "1")])
    assert found is not None and (found.compared, found.agreed) == (10, 5)


def test_a_shadow_that_disagrees_may_not(registry: Registry, replica: Replica) -> None:
    replicas = [replica()]
    _set(registry, State(live=1, shadow=Shadow(4, 0.98)))
    _show(registry, replicas, MIN_COMPARED + 20)  # It is right about green alone.
    with pytest.raises(ServerError, match=r"agree .* on 0\.98 of the pictures\. Received: 0\.3333 of 120"):
        check_shadow(registry, NAME, registry.state(NAME), 4)
    check_shadow(registry, NAME, registry.state(NAME), 3)  # Others have no floor.
    check_shadow(registry, NAME, replace(registry.state(NAME), shadow=None), 4)


def test_the_live_version_is_nobody_s_shadow(registry: Registry, replica: Replica) -> None:
    models = replica()
    _set(registry, State(live=2, before=(1,), shadow=Shadow(2, 0.98)))
    _until(lambda: _version(models) == "2")
    time.sleep(2 * POLL_S)
    assert models._shadow is None


def test_a_shadow_that_fails_on_pictures_does_not_agree_on_them(registry: Registry, replica: Replica) -> None:
    models = replica()
    _set(registry, State(live=1, shadow=Shadow(2, 0.98)))
    _show(registry, [models], MIN_COMPARED)
    shadow = models._shadow
    assert shadow is not None
    shadow._compare = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    for _ in range(3):
        _answer(models, "red")
        _until(shadow._queue.empty)
    _until(lambda: any(r.shadow and r.shadow["unreadable"] == 3 for r in reports(registry, NAME)))
    with pytest.raises(ServerError, match=r"Received: 0\.9709 of 103, 3 of which it failed on"):
        check_shadow(registry, NAME, registry.state(NAME), 2)


def test_a_shadow_that_does_not_load_says_why(registry: Registry, replica: Replica) -> None:
    models = replica()
    _set(registry, State(live=1, shadow=Shadow(5, 0.5)))
    _until(lambda: any(r.shadow and r.shadow["error"] for r in reports(registry, NAME)))
    with pytest.raises(ServerError, match=r"Received: 0 \(.*golden logits"):
        check_shadow(registry, NAME, registry.state(NAME), 5)
    assert _version(models) == "1"


def test_a_shadow_that_still_loads_keeps_no_version_waiting(registry: Registry, replica: Replica) -> None:
    models = replica()
    hold = threading.Event()

    def load(*_: object) -> ServedModel:
        hold.wait(60)
        return models.live

    models._load_shadow = load  # type: ignore[method-assign]
    _set(registry, State(live=1, shadow=Shadow(3, 0.98)))
    _until(lambda: models._shadow is not None)
    shadow = models._shadow
    assert shadow is not None
    with registry.writing():
        assert switch(registry, NAME, State(live=2, before=(1,)), timeout_s=30.0) == 1
    assert _version(models) == "2" and shadow._thread.is_alive()
    hold.set()
    shadow.join()


def test_a_shadow_never_keeps_an_answer_waiting(registry: Registry, replica: Replica) -> None:
    models = replica()
    _set(registry, State(live=1, shadow=Shadow(2, 0.98)))
    _until(lambda: models._shadow is not None)
    shadow = models._shadow
    assert shadow is not None
    hold = threading.Event()
    shadow._compare = lambda *_: hold.wait(60)  # type: ignore[method-assign, assignment]
    for _ in range(50):
        _answer(models, "red")  # Returns although nobody takes them.
    assert shadow.figures()["dropped"] >= 40
    hold.set()


def test_pictures_that_wait_for_a_shadow_are_small_and_keep_no_request_s_body() -> None:
    hold = threading.Event()

    def load() -> ServedModel:
        hold.wait(60)
        raise UsageError("no shadow")

    shadow = ShadowRun((1, 2), "", load)
    body = bytes(3 * 2 * 1500 * 1500)
    for one in np.frombuffer(body, np.uint8).reshape(2, 1500, 1500, 3):  # 6.75 MB each
        shadow.offer(one, one[:8, :8], "red", 0.001)
    assert shadow.figures()["dropped"] == 2
    small = np.frombuffer(body, np.uint8)[: 3 * 8 * 8].reshape(8, 8, 3)
    shadow.offer(small, small, "red", 0.001)
    source, pixels, *_ = shadow._queue.get_nowait() or ()
    assert source.base is None and pixels.base is None and np.array_equal(source, small)
    hold.set()
    shadow.stop()


def test_a_shadow_that_makes_other_pixels_leaves_out_what_takes_much_memory(
    registry: Registry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = replica().live
    shadow = ShadowRun((1, 2), "another", lambda: live)
    assert os.getpriority(os.PRIO_PROCESS, shadow._thread.native_id or 0) == 19
    pixels = live.pixels(picture("red"))
    large = np.zeros((40, 30, 3), np.uint8)
    large[:, :, 0] = 255
    for source in (picture("red"), large):  # Neither takes the live version's pixels, which say something else here.
        shadow.offer(source, np.zeros_like(pixels), "red", 0.001)
    _until(lambda: shadow.figures()["compared"] == 2)
    assert shadow.figures()["agreed"] == 2
    monkeypatch.setattr(ServedModel, "memory_bytes", lambda *_: (64 << 20) + 1)
    shadow.offer(picture("red"), pixels, "red", 0.001)
    _until(lambda: shadow.figures()["dropped"] == 1)
    assert shadow.figures()["compared"] == 2
    shadow.stop()


def test_a_shadow_that_takes_the_live_version_s_pixels_is_shown_photos_of_any_size(
    registry: Registry, replica: Replica
) -> None:
    models = replica()
    live = models.live
    shadow = ShadowRun((1, 2), live.bundle.record.preprocessing, lambda: live)
    _until(lambda: not shadow._own_pixels)
    pixels = live.pixels(picture("red"))
    shadow.offer(picture("red") + bytes(5 << 20), pixels, "red", 0.001)
    _until(lambda: shadow.figures()["compared"] == 1)
    shadow.stop()
