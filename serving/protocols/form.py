"""Files in a form (`multipart/form-data`, RFC 7578), parsed by python-multipart within bounds."""

from __future__ import annotations

from typing import Any

from rayml.errors import InputError


def one_file(content_type: str, body: bytes) -> bytes:
    """The content of a form whose only field is `file`.

    Arguments:
        content_type: the request's header, with the boundary.
        body: the whole body.

    Raises:
        InputError: 400, code `bad_form`.
    """
    expected = "one field named file"
    parts = _parse(content_type, body, expected, max_parts=8)
    names = [name for name, _ in parts]
    if names != [b"file"]:
        raise _bad(expected, f"fields {_shown(names)}")
    return bytes(parts[0][1])


def all_files(content_type: str, body: bytes, max_files: int) -> list[bytes]:
    """The contents of a form all of whose fields are named `file`.

    Raises:
        InputError: 400, code `bad_form`.
    """
    expected = f"1 to {max_files} fields named file"
    parts = _parse(content_type, body, expected, max_parts=max_files)
    names = {name for name, _ in parts}
    if names != {b"file"}:
        raise _bad(expected, f"fields {_shown(sorted(names))}")
    return [bytes(content) for _, content in parts]


def _parse(content_type: str, body: bytes, expected: str, max_parts: int) -> list[tuple[bytes, bytearray]]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046, section 5.1.1
        raise _bad(expected, "no boundary of 1 to 70 characters in content-type")
    parts = _Parts(expected, max_parts)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _bad(expected, "a malformed form") from None
    if not parts.finished:
        raise _bad(expected, "a form that ends before its last boundary")
    return parts.found


def _shown(names: list[bytes]) -> str:
    return ", ".join(repr(name.decode("utf-8", "replace")[:40]) for name in names[:8]) or "none"


def _bad(expected: str, received: str) -> InputError:
    return InputError(f"The form must have {expected}. Received: {received}", code="bad_form")


class _Parts:
    """Collects a form's parts from the parser's callbacks as `(name, content)`."""

    def __init__(self, expected: str, max_parts: int) -> None:
        self.found: list[tuple[bytes, bytearray]] = []
        self.finished = False
        self._expected = expected
        self._max_parts = max_parts
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self.found[-1][1].extend(data[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.found) >= self._max_parts:
            raise _bad(self._expected, f"more than {self._max_parts} fields")
        self._disposition = b""

    def _end_header(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        from python_multipart.multipart import parse_options_header

        name = parse_options_header(self._disposition)[1].get(b"name", b"")
        self.found.append((name, bytearray()))

    def _end(self) -> None:
        self.finished = True
