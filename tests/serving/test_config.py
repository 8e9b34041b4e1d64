"""Settings and limits are checked when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from rayml.cores import usable_cores
from rayml.errors import UsageError
from rayml.predictor import AUTO, GOLDEN_TOLERANCES
from serving.config import PRECISIONS, ServeSettings
from serving.limits import RequestLimits


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": ""},
        {"host": "a b"},
        {"port": 0},
        {"port": 65536},
        {"engine": "tensorflow"},
        {"engine": "Auto"},
        {"replicas": 0},
        {"replicas": 65},
        {"threads": 0},
        {"threads": 257},
        {"limits": RequestLimits(max_image_bytes=400 * 2**20)},
    ],
)
def test_wrong_settings_name_themselves(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    if name == "limits":
        name, value = "max_buffered_bytes", wrong["limits"].max_buffered_bytes
    with pytest.raises(UsageError, match=rf"^{name} .* Received: ") as caught:
        ServeSettings(**wrong)
    assert str(value) in caught.value.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_image_bytes": 0},
        {"max_image_bytes": 2**31},
        {"max_pixels": -1},
        {"max_in_flight": 0},
        {"max_batched": 0},
        {"max_decode_bytes": 0},
        {"max_in_flight": True},
        {"retry_after_s": 0},
        {"deadline_s": 0.0},
        {"deadline_s": float("nan")},
        {"deadline_s": float("inf")},
    ],
)
def test_wrong_limits_name_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"^{next(iter(wrong))} .* Received: "):
        RequestLimits(**wrong)


def test_auto_divides_the_cores_among_the_replicas() -> None:
    assert ServeSettings().replica_count == 1
    assert ServeSettings().thread_count == usable_cores()
    assert ServeSettings(replicas=64).thread_count == max(1, usable_cores() // 64)
    assert ServeSettings(replicas=2, threads=3).thread_count == 3


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("box.example", "http://box.example:8000"),
    ],
)
def test_the_url_for_a_client_on_this_machine(host: str, url: str) -> None:
    assert ServeSettings(host=host).url == url


def test_settings_survive_json() -> None:
    settings = ServeSettings(port=81, replicas=2, limits=RequestLimits(deadline_s=2.5, max_in_flight=3))
    assert ServeSettings.from_json(settings.to_json()) == settings


def test_the_image_limits_are_the_same_numbers() -> None:
    limits = RequestLimits(max_image_bytes=7, max_pixels=9)
    assert (limits.image.max_bytes, limits.image.max_pixels) == (7, 9)


def test_the_precisions_are_those_that_a_bundle_can_be_judged_in() -> None:
    assert (AUTO, *GOLDEN_TOLERANCES) == PRECISIONS
    assert [ServeSettings(precision=each).precision for each in PRECISIONS] == list(PRECISIONS)
    with pytest.raises(UsageError, match="precision must be one of auto, float32, bfloat16, int8"):
        ServeSettings(precision="int4")


def test_settings_in_json_may_leave_things_out() -> None:
    assert ServeSettings.from_json('{"port": 8123}') == ServeSettings(port=8123)
    given = ServeSettings(allow_url_hosts=("images.example.com",), api_key_file="keys", access_log=True)
    assert ServeSettings.from_json(given.to_json()) == given
