"""What requests hold of a replica, and who gives way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rayml.errors import InputError
from serving.admission import OVERLOADED, Admission, Place
from serving.limits import RequestLimits


def _taken(room: Admission) -> tuple[int, int, int, int]:
    return room.in_flight, room.buffered_bytes, room.batched, len(room.readers)


def _refused(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except InputError as error:
        assert (error.status, error.code) == (503, OVERLOADED)
        return True
    return False


def test_what_a_request_holds_is_free_when_it_ends_however_it_does() -> None:
    room = Admission(RequestLimits(max_in_flight=2, max_buffered_bytes=100, max_batched=10))
    with room.place() as first:
        first.hold_bytes(60)
        first.hold_bytes(30)
        first.hold_batch(25)  # A single batch always gets in.
        with pytest.raises(ZeroDivisionError), room.place() as second:
            assert _refused(room.place)
            assert _refused(lambda: second.hold_bytes(11)) and _refused(lambda: second.hold_batch(1))
            second.hold_bytes(10)
            assert _taken(room) == (2, 100, 25, 0)
            raise ZeroDivisionError
        assert _taken(room) == (1, 90, 25, 0)
    assert _taken(room) == (0, 0, 0, 0)


def test_a_refusal_takes_nothing() -> None:
    room = Admission(RequestLimits(max_in_flight=1, max_buffered_bytes=1, max_batched=1))
    with room.place() as place:
        assert _refused(room.place) and _refused(lambda: place.hold_bytes(2))
    assert _taken(room) == (0, 0, 0, 0)


def test_a_body_trickles_that_after_two_seconds_brings_less_than_16_kib_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("serving.admission.time.monotonic", lambda: now[0])

    async def gives_way(count: int, seconds: float) -> bool:
        room = Admission(RequestLimits(max_in_flight=1))

        async def read() -> None:
            with room.place() as place, place.reading():
                place.hold_bytes(count)
                await asyncio.Event().wait()

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        now[0] += seconds
        gone = not _refused(lambda: room.place().__enter__())
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return gone

    for count, seconds, expected in (
        (0, 1.9, False),
        (0, 2.1, True),
        (4 * 16 * 1024 - 1, 4.0, True),
        (4 * 16 * 1024, 4.0, False),
    ):
        assert asyncio.run(gives_way(count, seconds)) is expected, (count, seconds)


def test_of_full_places_the_one_whose_body_trickles_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.admission._TRICKLE_GRACE_S", 0.1)
    room = Admission(RequestLimits(max_in_flight=3))

    async def read(place: Place, count: int) -> None:
        with place, place.reading():
            place.hold_bytes(count)
            await asyncio.Event().wait()

    async def compute(place: Place) -> None:
        with place:
            with place.reading():
                place.hold_bytes(1)  # However slow it was: what is here is worked on.
            await asyncio.Event().wait()

    async def crowd() -> None:
        trickle, upload, work = room.place(), room.place(), room.place()
        tasks = [asyncio.create_task(each) for each in (read(trickle, 1), read(upload, 1_000_000), compute(work))]
        await asyncio.sleep(0.01)
        assert _taken(room) == (3, 1_000_002, 0, 2)
        assert _refused(room.place)  # Nobody has trickled for long enough.
        await asyncio.sleep(0.15)
        with room.place():
            await asyncio.sleep(0.01)
            assert [place.gave_way for place in (trickle, upload, work)] == [True, False, False]
            assert tasks[0].cancelled() and _taken(room) == (3, 1_000_001, 0, 1)
            assert _refused(room.place)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(crowd())
    assert _taken(room) == (0, 0, 0, 0)
