"""RUN/ledger.jsonl: what was decided about which trial, when, and why; a line of JSON each.

    {"trial": "00003", "epoch": 2, "value": 0.71, "cut": 0.78, "out_of": 5, "decision": "stop",
     "reason": "epoch 2: 0.7100 below 0.7800 of 5 trials: stop"}

It is more than a log: a resumed search takes back from it which trials have ended, and what the scheduler had compared.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

CONTINUE, STOP, FINISH, FAIL = "continue", "stop", "finish", "fail"
STATUS = {STOP: "stopped", FINISH: "finished", FAIL: "failed"}  # What a decision makes of its trial.
ENDINGS = tuple(STATUS)


@dataclass(frozen=True)
class Decision:
    """One line.

    Arguments:
        trial: its number.
        epoch: after which; 0 for a trial that failed before its first epoch.
        value: the trial's validation accuracy after that epoch; None where it failed.
        cut: what it was compared with; None where there was nothing to compare.
        out_of: of how many trials the cut was taken.
        decision: `continue`, `stop` (by the scheduler), `finish` (all epochs are done) or `fail`.
        reason: the same as a sentence.
        again: of `fail`: its process died, or it raised an error, so that a search that is resumed tries it again.
    """

    trial: str
    epoch: int
    value: float | None
    cut: float | None
    out_of: int
    decision: str
    reason: str
    again: bool = False


class Ledger:
    """The file and what it says.

    Arguments:
        path: read if it is there. Lines that cannot be read (the last one, where a disk was full) are left out and
            removed from the file; `unreadable` counts them.

    Raises:
        OSError: it is there and cannot be read, or must be mended and cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decisions: list[Decision] = []
        self._at: dict[tuple[str, int], Decision] = {}
        self._endings: dict[str, Decision] = {}
        self.unreadable = 0
        if not path.exists():
            return
        text = path.read_text(errors="replace")
        for line in text.splitlines():
            try:
                self._take(Decision(**json.loads(line)))
            except (ValueError, TypeError):
                self.unreadable += 1
        if self.unreadable or not text.endswith("\n"):
            draft = path.with_suffix(".jsonl.tmp")
            draft.write_text("".join(map(_line, self._decisions)))
            draft.replace(path)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All of them, in the order in which they were made."""
        return tuple(self._decisions)

    def write(self, decision: Decision) -> None:
        """Add a line.

        Raises:
            OSError: the disk is full or read-only.
        """
        with self._path.open("a") as file:
            file.write(_line(decision))
        self._take(decision)

    def at(self, trial: str, epoch: int) -> Decision | None:
        """What was decided about a trial after an epoch."""
        return self._at.get((trial, epoch))

    def ending(self, trial: str) -> Decision | None:
        """The decision that ended a trial."""
        return self._endings.get(trial)

    def try_again(self) -> None:
        """Take trials that may be tried again for trials that have not ended; their lines stay."""
        for trial, ending in list(self._endings.items()):
            if ending.again:
                self._forget(trial)

    def _forget(self, trial: str) -> None:
        ending = self._endings.pop(trial)
        if self._at[trial, ending.epoch] is ending:
            del self._at[trial, ending.epoch]

    def _take(self, decision: Decision) -> None:
        self._decisions.append(decision)
        if (ending := self._endings.get(decision.trial)) is not None and ending.again:
            self._forget(decision.trial)  # It was tried again.
        self._at.setdefault((decision.trial, decision.epoch), decision)
        if decision.decision in ENDINGS:
            self._endings.setdefault(decision.trial, decision)


def _line(decision: Decision) -> str:
    values = asdict(decision)
    if not decision.again:
        del values["again"]
    return json.dumps(values) + "\n"
