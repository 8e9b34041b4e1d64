"""docs/settings.md is what the code says."""

from __future__ import annotations

import dataclasses

from scripts import settings_page
from tune_jobs.config import SearchSettings


def test_the_page_is_up_to_date() -> None:
    written = settings_page.PAGE.read_text(encoding="utf-8")
    assert written == settings_page.page(), "python -m scripts.settings_page renews it"


def test_every_setting_is_explained() -> None:
    said = settings_page.arguments(SearchSettings)
    assert list(said) == [field.name for field in dataclasses.fields(SearchSettings)]
    assert all(len(words) > 10 for words in said.values())


@dataclasses.dataclass
class Other:
    """One.

    Arguments:
        a, b: both of
            them: yes.
        c: the last.

    Raises:
        ValueError: never.
    """

    a: int = 1
    b: int = 2
    c: int = 3


def test_how_a_docstring_is_read() -> None:
    assert settings_page.arguments(Other) == {"a": "both of them: yes.", "b": "both of them: yes.", "c": "the last."}
