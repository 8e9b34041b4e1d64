"""Reads the project's Markdown: fenced blocks with the note before them, links, anchors, code in the text.

A note is an HTML comment on the line before a block, which readers of the page do not see:

    <!-- not run: REASON -->        the block's commands are only parsed
    <!-- in the background -->      its last command serves until the next such block, or the end
    <!-- with: OPTIONS -->          the options are added to its `rayml tune`
    <!-- printed -->                what the blocks before it have printed; figures may differ
    <!-- printed by: COMMAND -->    what a command prints that a test of its own runs

Blocks in bash and python are run; those in text, yaml and json, and indented ones, are not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"```(\w*)")
_NOTE = re.compile(r"<!-- (.*?) -->")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"#{1,6} +(.*)")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Arguments:
        language: what stands behind the fence, "" for nothing.
        text: its lines.
        line: the number of its first line, from 1.
        note: the comment on the line before it, or "".
    """

    language: str
    text: str
    line: int
    note: str = ""

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a bash block, without comments and redirections; a pipe begins a new one."""
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words: list[str] = []
            skip = False
            for word in [*lexer, ";"]:
                if set(word) <= set("<>"):
                    skip = True
                elif set(word) <= set("|&;"):
                    if words:
                        yield words
                    words = []
                elif not skip:
                    words.append(word)
                else:
                    skip = False


def blocks(text: str) -> list[Block]:
    """All fenced blocks, in order."""
    found: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        if opened := _FENCE.fullmatch(lines[at].strip()):
            end = next(n for n in range(at + 1, len(lines)) if lines[n].strip() == "```")
            note = _NOTE.fullmatch(lines[at - 1].strip()) if at else None
            found.append(Block(opened[1], "\n".join(lines[at + 1 : end]) + "\n", at + 2, note[1] if note else ""))
            at = end
        at += 1
    return found


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    kept, inside = [], False
    for line in text.splitlines():
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def links(text: str) -> list[str]:
    """Where the links and pictures of a text lead."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text)))


def code(text: str) -> list[str]:
    """The code within the text."""
    return _INLINE.findall(re.sub(r"(?<=\S)\n *(?=\S)", " ", prose(text)))


def anchors(text: str) -> set[str]:
    """The names of its headings, as GitHub makes them: in lower case, without punctuation, spaces as hyphens."""
    found: set[str] = set()
    for line in prose(text).splitlines():
        if heading := _HEADING.fullmatch(line):
            name = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            number = 0
            while (numbered := f"{name}-{number}" if number else name) in found:
                number += 1
            found.add(numbered)
    return found


def pages(root: Path) -> list[Path]:
    """README.md and everything in docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
