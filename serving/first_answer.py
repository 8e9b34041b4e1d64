"""A server is there when a golden picture sent to it comes back with the right answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from rayml.bundle import Bundle
from rayml.errors import RaymlError, ServerError
from rayml.predictor import golden_labels
from serving.client import Client

# From the last Serve call on, the first right answer takes well under a second; a loaded machine may take this long.
_FIRST_ANSWER_TIMEOUT_S = 60.0


def await_right_answer(client: Client, bundle: Bundle, live: Callable[[], Bundle]) -> None:
    """Send a golden picture until the answer is the bundle's own, or that of the one that is live by then."""
    deadline = time.monotonic() + _FIRST_ANSWER_TIMEOUT_S
    while True:
        right = golden_labels(bundle)[0]
        labels = [label for label, one in zip(bundle.record.classes, right, strict=True) if one]
        try:
            answer = client.predict(bundle.golden.pictures[0])
        except RaymlError as error:
            if time.monotonic() > deadline:
                raise ServerError(f"The server must answer. Received: {error.message}") from error
            time.sleep(0.05)
            continue
        label, digest = answer["label"], answer["model"]["bundle"]
        if digest == bundle.digest and label in labels:
            return
        if digest == bundle.digest or time.monotonic() > deadline:
            raise ServerError(
                f"The server must answer a golden picture with {' or '.join(labels)} of {bundle.digest}. "
                f"Received: {label} of {digest}"
            )
        time.sleep(0.05)
        bundle = live()  # Another version may have been promoted since.
