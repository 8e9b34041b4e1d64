from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from rayml.bundle import Bundle
from rayml.errors import ServerError
from serving import first_answer
from serving.client import Client
from tests.serving.tiny_bundle import write_tiny_bundle


class _Answers:
    """A client whose server answers a golden picture with a label and a bundle."""

    def __init__(self, label: str, bundle: str) -> None:
        self._answer = {"label": label, "model": {"bundle": bundle}}

    def predict(self, _picture: bytes) -> dict[str, Any]:
        return self._answer


def test_another_version_that_is_live_by_the_first_answer_is_right_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Bundle.open(write_tiny_bundle(tmp_path / str(t), temperature=float(t))) for t in (1, 2))
    label = first.record.classes[int(first.golden.logits[0].argmax())]

    def wait(label: str, bundle: str, live: Bundle) -> None:
        first_answer.await_right_answer(cast(Client, _Answers(label, bundle)), first, lambda: live)

    wait(label, first.digest, first)
    wait(label, second.digest, second)  # Promoted while the server started.
    with pytest.raises(ServerError, match="answer a golden picture"):
        wait("another", first.digest, first)
    monkeypatch.setattr(first_answer, "_FIRST_ANSWER_TIMEOUT_S", 0.2)
    with pytest.raises(ServerError, match="answer a golden picture"):
        wait(label, "another", first)


def test_either_class_of_a_tie_is_a_right_first_answer(tmp_path: Path) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b"))
    logits = bundle.golden.logits.copy()
    logits[0] = [3.0, 3.0005, 2.0]
    tied = replace(bundle, golden=replace(bundle.golden, logits=logits))
    for label in bundle.record.classes[:2]:
        first_answer.await_right_answer(cast(Client, _Answers(label, bundle.digest)), tied, lambda: tied)
    red = cast(Client, _Answers("red", bundle.digest))
    with pytest.raises(ServerError, match="with blue or green of"):
        first_answer.await_right_answer(red, tied, lambda: tied)
    logits[0] = [3.0, 3.0, 2.7]  # As near to each other as two engines' roundings in int8 may be apart.
    with pytest.raises(ServerError, match="with blue or green of"):
        first_answer.await_right_answer(red, tied, lambda: tied)
    in_int8 = replace(tied, precision="int8")
    first_answer.await_right_answer(red, in_int8, lambda: in_int8)
