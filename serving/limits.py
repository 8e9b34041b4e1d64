"""What one request may cost: bytes, pixels, seconds and places in the queue.

The only place where these numbers are written down; the replica, the proxy in front of it and the
documentation read them from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayml.errors import UsageError
from rayml.images import ImageLimits

_MEBIBYTE = 2**20
# Room around a picture in JSON or in a form: braces, a field name, boundaries and part headers.
_ENVELOPE_BYTES = 16 * 1024


@dataclass(frozen=True)
class RequestLimits:
    """Limits on one request and on the number of them.

    Arguments:
        max_image_bytes: largest encoded picture, in bytes, 1 to 1 GiB.
        max_pixels: largest width x height, read from the header before anything is decoded.
        max_instances: pictures in one request.
        max_json_values: members and elements of a JSON body; ten pictures of 224 px as numbers have 1.6 million.
        max_decode_bytes: memory that a replica's threads take at once for decoding, as `rayml.images.decode_bytes`
            tells it from each picture's header: a few MB for an ordinary photo, at worst 9 bytes a pixel, for WebP 17;
            and for resizing pixels that came as numbers, some 4 bytes a pixel (`rayml.images.fit_bytes`).
            The next ones wait; one that is above it alone is decoded when no other is. 1 GiB holds a largest picture
            of any kind.
        max_buffered_bytes: bodies and fetched pictures that a replica holds at once, altogether; the next ones are
            answered 503.
        deadline_s: seconds from a request's arrival to its answer, its body and what it fetches included, counted by
            the replica itself; no header of a client moves it.
        fetch_deadline_s: seconds of it that fetching pictures by URL may take.
        max_fetches: URLs that a replica fetches at once, and that one request may name: slow origins hold these places
            and no others.
        max_in_flight: requests that one replica holds at once; the next ones are answered 503 at once. 64 is less
            than a second of work for a MobileNet on two cores, so waiting stays shorter than a client's patience.
        max_batched: pictures that a replica holds at once from requests for more than one, those that `/explain` makes
            among them; the next such requests are answered 503, but one always gets in where there is no other.
            Requests for one picture need a place alone, whatever the batches of others. 256 are four largest batches;
            with 64 single pictures 320 wait at most, which a replica of 11 pictures a second answers in time.
        retry_after_s: whole seconds that a refused client is asked to wait.

    Raises:
        UsageError: a limit that is not a positive number in its range.
    """

    max_image_bytes: int = 20 * _MEBIBYTE
    max_pixels: int = 50_000_000
    max_instances: int = 64
    max_json_values: int = 2_000_000
    max_decode_bytes: int = 1024 * _MEBIBYTE
    max_buffered_bytes: int = 256 * _MEBIBYTE
    deadline_s: float = 30.0
    fetch_deadline_s: float = 10.0
    max_fetches: int = 8
    max_in_flight: int = 64
    max_batched: int = 256
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        _require("max_image_bytes", self.max_image_bytes, 1, 1024 * _MEBIBYTE)
        _require("max_pixels", self.max_pixels, 1, 2**31 - 1)
        _require("max_instances", self.max_instances, 1, 10_000)
        _require("max_json_values", self.max_json_values, 100, 100_000_000)
        _require("max_decode_bytes", self.max_decode_bytes, 1, 2**40)
        _require("max_buffered_bytes", self.max_buffered_bytes, 1, 2**40)
        _require("max_fetches", self.max_fetches, 1, 1_000)
        _require("max_in_flight", self.max_in_flight, 1, 10_000)
        _require("max_batched", self.max_batched, 1, 1_000_000)
        _require("retry_after_s", self.retry_after_s, 1, 3600)
        for name in ("deadline_s", "fetch_deadline_s"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and 0.0 < seconds <= 3600.0):
                raise UsageError(f"{name} must be above 0 and at most 3600 seconds. Received: {seconds}")

    @property
    def max_body_bytes(self) -> int:
        """The largest body of any kind: a largest picture in base64 (RFC 4648: 4 bytes for 3) and its envelope."""
        return 4 * math.ceil(self.max_image_bytes / 3) + _ENVELOPE_BYTES

    @property
    def max_json_strings(self) -> int:
        """The most strings of a JSON body, names of members among them: a picture has fewer than ten."""
        return 16 * self.max_instances + 256

    @property
    def image(self) -> ImageLimits:
        """The same limits as `rayml.images` takes them."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_pixels)


def _require(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:  # Neither 1.5 nor True, whatever the annotation says.
        raise UsageError(f"{name} must be a whole number from {low} to {high}. Received: {value!r}")
