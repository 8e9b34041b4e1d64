"""The schedulers' decisions one by one; Ray Tune's part is played by a controller that keeps a list."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_jobs.grid import in_turns
from tune_jobs.halving import Halving, rung_epochs
from tune_jobs.ledger import Ledger
from tune_jobs.scheduler import Asha, Halt, Scheduler

CONTINUE, STOP, PAUSE, NOOP = "CONTINUE", "STOP", "PAUSE", "NOOP"


def result(epoch: int, value: float, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "val_accuracy": value, "val_loss": loss, **more}


def trial(number: int, status: str = "PENDING", size_inner: int = 10) -> Any:
    cell = {"trial": f"{number:05}", "size_inner": size_inner, "dropout": 0.0, "batch_size": 32}
    return SimpleNamespace(config={"cell": cell}, status=status)


class Controller:
    """What the schedulers use of Ray's."""

    def __init__(self, count: int) -> None:
        self.trials = [trial(number) for number in range(count)]
        self.resumed: list[int] = []
        self._tune_controller = self

    def get_trials(self) -> list[Any]:
        return self.trials

    def stop_trial(self, stopped: Any) -> None:
        stopped.status = "TERMINATED"

    def pause_trial(self, paused: Any) -> None:
        paused.status = "PAUSED"

    def _schedule_trial_train(self, resumed: Any) -> None:
        self.resumed.append(int(resumed.config["cell"]["trial"]))

    def statuses(self) -> str:
        return " ".join(each.status for each in self.trials)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def reasons(ledger: Ledger) -> list[str]:
    return [f"{made.trial} {made.reason}" for made in ledger.decisions]


# --- none, and what all have in common


def test_a_process_goes_on_with_the_kind_of_head_that_it_has_compiled(ledger: Ledger) -> None:
    scheduler, controller = Scheduler(ledger, Halt(), epochs=2), Controller(0)
    sizes = (10, 100, 1000) * 3
    controller.trials = [trial(number, size_inner=size) for number, size in enumerate(sizes)]

    def choose() -> tuple[int, int]:
        chosen = scheduler.choose_trial_to_run(controller)
        assert scheduler.choose_trial_to_run(controller) is chosen
        return int(chosen.config["cell"]["trial"]), chosen.config["cell"]["size_inner"]

    begun = []
    for ends in (None, None, 0, 3, 1, 4, 6, 7, 2):  # Two processes: each trial that ends gives its own to the next.
        if ends is not None:
            controller.trials[ends].status = "TERMINATED"
        number, size = choose()
        controller.trials[number].status = "RUNNING"
        begun.append((number, size))
    assert begun == [(0, 10), (1, 100), (3, 10), (6, 10), (4, 100), (7, 100), (2, 1000), (5, 1000), (8, 1000)]


def test_nothing_waits_when_all_run(ledger: Ledger) -> None:
    controller = Controller(1)
    controller.trials[0].status = "RUNNING"
    assert Scheduler(ledger, Halt(), epochs=2).choose_trial_to_run(controller) is None


def test_cells_of_a_kind_are_apart() -> None:
    listed = [{"trial": str(i), "size_inner": size, "rate": i} for i, size in enumerate((10, 10, 10, 100, 1000, 1000))]
    assert [cell["trial"] for cell in in_turns(listed, ("size_inner",))] == ["0", "3", "4", "1", "5", "2"]
    assert in_turns([], ("size_inner",)) == []


def test_without_a_scheduler_all_epochs_are_run(ledger: Ledger) -> None:
    scheduler = Scheduler(ledger, Halt(), epochs=2)
    assert scheduler.on_trial_result(None, trial(0), result(1, 0.1)) == CONTINUE
    assert scheduler.on_trial_result(None, trial(0), result(2, 0.25)) == STOP
    # Started again after the last epoch: the same answer, no second line.
    assert scheduler.on_trial_result(None, trial(0), result(2, 0.25)) == STOP
    assert reasons(ledger) == ["00000 epoch 2: 0.2500 after the last epoch: finished"]


def test_a_trial_that_failed(ledger: Ledger) -> None:
    scheduler = Scheduler(ledger, Halt(), epochs=9)
    assert scheduler.on_trial_result(None, trial(4), result(3, float("nan"), failed="the loss is no number")) == STOP
    (made,) = ledger.decisions
    assert (made.trial, made.epoch, made.value, made.decision) == ("00004", 3, None, "fail")
    assert made.reason == "epoch 3: the loss is no number"


def test_what_must_not_be_lost_halts_the_search(tmp_path: Path) -> None:
    halt = Halt()
    scheduler = Scheduler(Ledger(tmp_path / "ledger.jsonl"), halt, epochs=2)
    assert not halt.stop_all()
    assert scheduler.on_trial_result(None, trial(0), result(1, 0.5, halted="the disk is full")) == STOP
    assert halt.stop_all() and halt.reason == "the disk is full"
    assert scheduler.ledger.decisions == ()

    (tmp_path / "gone").mkdir()
    halt = Halt()
    scheduler = Scheduler(Ledger(tmp_path / "gone" / "ledger.jsonl"), halt, epochs=1)
    (tmp_path / "gone").rmdir()
    assert scheduler.on_trial_result(None, trial(0), result(1, 0.5)) == STOP
    assert halt.reason == "a decision could not be written to ledger.jsonl (No such file or directory)"


# --- asha


def asha(ledger: Ledger, **changes: Any) -> Asha:
    return Asha(ledger, Halt(), **{"epochs": 9, "grace_period": 2, "reduction_factor": 2, **changes})


def test_asha_says_what_it_compared(ledger: Ledger) -> None:
    scheduler = asha(ledger)
    answers = [
        scheduler.on_trial_result(None, trial(number), result(epoch, value))
        for number, epoch, value in [
            (0, 1, 0.1),  # before the first rung
            (0, 2, 0.5),  # the first at its rung always goes on
            (1, 2, 0.4),
            (2, 2, 0.45),  # the median of 0.5 and 0.4: not below
            (3, 2, 0.44),
            (0, 3, 0.0),  # between rungs
            (0, 4, 0.6),
            (2, 4, 0.7),
            (0, 8, 0.6),
            (0, 9, 0.6),
        ]
    ]
    assert answers == [CONTINUE, CONTINUE, STOP, CONTINUE, STOP, CONTINUE, CONTINUE, CONTINUE, CONTINUE, STOP]
    assert reasons(ledger) == [
        "00000 epoch 2: 0.5000 the first at its rung: go on",
        "00001 epoch 2: 0.4000 below 0.5000 of 1 trial: stop",
        "00002 epoch 2: 0.4500 not below 0.4500 of 2 trials: go on",
        "00003 epoch 2: 0.4400 below 0.4500 of 3 trials: stop",
        "00000 epoch 4: 0.6000 the first at its rung: go on",
        "00002 epoch 4: 0.7000 not below 0.6000 of 1 trial: go on",
        "00000 epoch 8: 0.6000 the first at its rung: go on",
        "00000 epoch 9: 0.6000 after the last epoch: finished",
    ]
    assert [(made.cut, made.out_of) for made in ledger.decisions[:3]] == [(None, 0), (0.5, 1), (0.45, 2)]
    # A trial that is started again reports its last epoch once more.
    assert scheduler.on_trial_result(None, trial(3), result(2, 0.44)) == STOP
    assert scheduler.on_trial_result(None, trial(2), result(4, 0.7)) == CONTINUE
    assert len(ledger.decisions) == 8


@pytest.mark.parametrize("after", range(6))
def test_ashas_rungs_survive_the_process(tmp_path: Path, after: int) -> None:
    values = [0.5, 0.4, 0.6, 0.45, 0.7, 0.65]

    def run(path: Path, restart: int | None) -> list[str]:
        scheduler = asha(Ledger(path))
        for number, value in enumerate(values):
            if number == restart:
                scheduler = asha(Ledger(path))
            scheduler.on_trial_result(None, trial(number), result(2, value))
        return reasons(Ledger(path))

    assert run(tmp_path / "a.jsonl", after) == run(tmp_path / "b.jsonl", None)


def test_asha_decides_as_rays_own_does(ledger: Ledger) -> None:
    """The same reports in the same order to Ray's scheduler itself, over three rungs."""
    import numpy as np
    from ray.tune.schedulers import ASHAScheduler

    theirs = ASHAScheduler("epoch", "val_accuracy", "max", max_t=27, grace_period=3, reduction_factor=3)
    ours = asha(ledger, epochs=27, grace_period=3, reduction_factor=3)
    random, going = np.random.default_rng(3), list(range(40))
    for number in going:
        theirs.on_trial_add(None, SimpleNamespace(trial_id=number))
    for epoch in range(1, 28):
        for number in list(random.permutation(going)):
            report = result(epoch, float(random.random()))
            answer = ours.on_trial_result(None, trial(number), report)
            assert answer == theirs.on_trial_result(None, SimpleNamespace(trial_id=number), report)
            if answer == STOP:
                going.remove(number)
    assert {made.epoch for made in ledger.decisions} == {3, 9, 27}


# --- sync


@pytest.mark.parametrize(
    ("epochs", "grace", "factor", "expected"),
    [
        (10, 2, 3, (2, 6)),
        (6, 2, 3, (2,)),
        (9, 1, 3, (1, 3)),
        (10, 1, 2.5, (1, 3, 7)),
        (7, 1, 2.5, (1, 3)),
        (10, 2, 1e308, (2,)),
        (2, 2, 3, ()),
        (1, 1, 2, ()),
    ],
)
def test_where_the_rungs_are(epochs: int, grace: int, factor: float, expected: tuple[int, ...]) -> None:
    assert rung_epochs(epochs, grace, factor) == expected


class Play:
    """A search of trials whose figures are a table, on so many slots, arriving in the order asked for."""

    def __init__(self, ledger: Ledger, count: int, known: Any = None, **changes: Any) -> None:
        settings: dict[str, Any] = {"epochs": 8, "grace_period": 2, "reduction_factor": 2, "known": known or {}}
        numbers = [f"{number:05}" for number in range(count)]
        self.halving = Halving(ledger, Halt(), trials=numbers, **{**settings, **changes})
        self.controller = Controller(count)

    def report(self, number: int, epoch: int, value: float, loss: float = 1.0, **more: Any) -> str:
        """A trial's report and what Ray does with the answer."""
        reporting = self.controller.trials[number]
        reporting.status = "RUNNING"
        answer = self.halving.on_trial_result(self.controller, reporting, result(epoch, value, loss, **more))
        reporting.status = {PAUSE: "PAUSED", STOP: "TERMINATED"}.get(answer, "RUNNING")
        return answer

    def choose(self) -> int | None:
        """The trial that Ray is told to run; it then is pending, or runs already."""
        chosen = self.halving.choose_trial_to_run(self.controller)
        if chosen is None:
            return None
        if chosen.status == "PAUSED":
            chosen.status = "PENDING"
        return int(chosen.config["cell"]["trial"])


def test_a_rung_is_decided_when_all_are_there(ledger: Ledger) -> None:
    play = Play(ledger, 4)
    assert play.choose() == 0
    assert play.report(0, 1, 0.9) == CONTINUE
    assert play.report(0, 2, 0.5) == PAUSE  # The others have not begun and want its process.
    assert play.report(1, 2, 0.7) == PAUSE
    play.controller.trials[3].status = "RUNNING"
    assert play.report(2, 2, 0.6) == NOOP  # The last one runs already: nobody wants it, so it keeps its process.
    assert ledger.decisions == ()
    assert play.choose() is None
    assert play.report(3, 2, 0.6, loss=0.9) == CONTINUE
    assert reasons(ledger) == [
        "00001 epoch 2: 0.7000 is place 1 of 4, the best 2 (0.6000 and up) go on: go on",
        "00003 epoch 2: 0.6000 is place 2 of 4, the best 2 (0.6000 and up) go on: go on",  # the lower loss
        "00002 epoch 2: 0.6000 is place 3 of 4, the best 2 (0.6000 and up) go on: stop",
        "00000 epoch 2: 0.5000 is place 4 of 4, the best 2 (0.6000 and up) go on: stop",
    ]
    assert [(made.cut, made.out_of) for made in ledger.decisions] == [(0.6, 4)] * 4
    assert play.choose() == 1  # The winner asks for a process before the losers give theirs up.
    assert play.controller.statuses() == "PAUSED PENDING RUNNING RUNNING"
    assert play.choose() == 1
    assert play.controller.statuses() == "TERMINATED PENDING TERMINATED RUNNING"
    # Started again it reports epoch 2 once more.
    assert play.report(1, 2, 0.7) == CONTINUE
    assert play.report(3, 4, 0.8) == NOOP
    assert play.report(1, 4, 0.9) == CONTINUE
    assert play.choose() is None
    assert play.controller.statuses() == "TERMINATED RUNNING TERMINATED TERMINATED"
    assert play.report(1, 8, 0.1) == STOP
    assert len(ledger.decisions) == 7


def test_who_waits_with_a_process_makes_room_for_one_that_has_lost_its_own(ledger: Ledger) -> None:
    play = Play(ledger, 4)
    for number in (0, 1):
        assert play.report(number, 2, 0.5) == PAUSE
    for number in (2, 3):
        play.controller.trials[number].status = "RUNNING"
    assert play.report(2, 2, 0.7) == NOOP
    assert play.choose() is None
    play.controller.trials[3].status = "PENDING"  # Its machine is gone, and there is no other.
    assert play.choose() == 3
    assert play.controller.statuses() == "PAUSED PAUSED PAUSED PENDING"
    assert play.report(3, 2, 0.6) == CONTINUE
    assert play.choose() == 2
    assert play.controller.statuses() == "PAUSED PAUSED PENDING RUNNING"


def test_the_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    from itertools import permutations

    values = [0.5, 0.7, 0.7, 0.6, 0.4]
    seen = set()
    for number, order in enumerate(permutations(range(5))):
        ledger = Ledger(tmp_path / f"{number}.jsonl")
        play = Play(ledger, 5)
        for arriving in order:
            play.report(arriving, 2, values[arriving])
        seen.add(tuple(reasons(ledger)))
    assert len(seen) == 1
    assert [reason[:5] for reason in next(iter(seen)) if reason.endswith("go on")] == ["00001", "00002"]


def test_one_that_waited_goes_on_where_it_stands(ledger: Ledger) -> None:
    play = Play(ledger, 2)
    play.controller.trials[1].status = "RUNNING"
    assert play.report(0, 2, 0.9) == NOOP
    assert play.report(1, 2, 0.1) == NOOP  # Lost; its process is taken only when those who go on have asked.
    assert play.choose() is None
    assert play.controller.resumed == [0]
    assert play.controller.statuses() == "RUNNING TERMINATED"
    play.choose()
    assert play.controller.resumed == [0]


def test_nobody_waits_for_a_trial_that_failed(ledger: Ledger) -> None:
    play = Play(ledger, 3)
    for running in play.controller.trials:
        running.status = "RUNNING"
    assert play.report(0, 2, 0.9) == NOOP
    assert play.report(1, 2, 0.8) == NOOP
    assert play.report(2, 1, float("nan"), failed="no number") == STOP
    assert reasons(ledger)[1:] == [
        "00000 epoch 2: 0.9000 is place 1 of 2, the best 1 (0.9000 and up) go on: go on",
        "00001 epoch 2: 0.8000 is place 2 of 2, the best 1 (0.9000 and up) go on: stop",
    ]
    play.choose()
    assert play.controller.resumed == [0]
    play.halving.fail("00000", 5, "its process died")  # The last one too: nothing is left to decide.
    assert play.choose() is None


def test_nobody_makes_room_for_a_trial_that_failed(ledger: Ledger) -> None:
    play = Play(ledger, 3)
    play.controller.trials[1].status = "RUNNING"
    assert play.report(2, 1, float("nan"), failed="no number") == STOP
    assert play.report(0, 2, 0.9) == NOOP


def test_a_process_that_died_while_its_trial_waited(ledger: Ledger) -> None:
    play = Play(ledger, 2)
    play.controller.trials[1].status = "RUNNING"
    assert play.report(0, 2, 0.9) == NOOP
    play.controller.trials[0].status = "PENDING"  # Ray has noticed and starts it again.
    assert play.choose() == 0
    assert play.report(1, 2, 0.1) == NOOP
    assert play.report(0, 2, 0.9) == CONTINUE
    assert play.controller.resumed == []


def test_what_was_known_before_is_decided_at_once(ledger: Ledger) -> None:
    known = {("00000", 1): (0.1, 1.0), ("00000", 2): (0.5, 1.0), ("00001", 2): (0.6, 1.0)}
    play = Play(ledger, 2, known=known)
    assert [made.decision for made in ledger.decisions] == ["continue", "stop"]
    assert [made.trial for made in ledger.decisions] == ["00001", "00000"]
    assert play.report(1, 2, 0.6) == CONTINUE
    assert play.report(0, 2, 0.5) == STOP
    # Again with that ledger: nothing is written twice.
    Play(ledger, 2, known=known)
    assert len(ledger.decisions) == 2


def test_a_rung_stays_decided_where_one_of_it_failed_later(tmp_path: Path) -> None:
    """Of eight trials the best two go on; the better one fails before the next rung, and the driver is killed."""
    path, scores = tmp_path / "ledger.jsonl", {number: 0.9 - number / 10 for number in range(8)}
    changes = {"epochs": 10, "reduction_factor": 3}
    play = Play(Ledger(path), 8, **changes)
    for number, value in scores.items():
        play.report(number, 2, value)
    assert play.report(0, 3, float("nan"), failed="the loss is no number") == STOP
    before = path.read_text()
    known = {(f"{number:05}", 2): (value, 1.0) for number, value in scores.items()}
    again = Play(Ledger(path), 8, known=known, **changes)
    assert path.read_text() == before  # Seven trials would leave two without it: one more, which has ended.
    for each in (play, again):
        each.halving.ledger = Ledger(path)
        assert each.report(1, 6, 0.85) == CONTINUE
        assert reasons(each.halving.ledger)[-1] == (
            "00001 epoch 6: 0.8500 is place 1 of 1, the best 1 (0.8500 and up) go on: go on"
        )
        path.write_text(before)


@pytest.mark.parametrize("reached", [2, 3])
def test_what_the_ledger_knows_and_the_history_has_lost_is_told_by_the_trial(tmp_path: Path, reached: int) -> None:
    path = tmp_path / "ledger.jsonl"
    play = Play(Ledger(path), 2)
    play.report(0, 2, 0.9)
    play.report(1, 2, 0.5)
    first, _ = path.read_text().splitlines(keepends=True)
    path.write_text(first)  # A crash took the other line, and the first trial's epoch from the history.
    ledger = Ledger(path)
    play = Play(ledger, 2, known={("00001", 2): (0.5, 1.0)})
    assert play.report(1, 2, 0.5) == PAUSE
    metrics = SimpleNamespace(val_accuracy=0.9, val_loss=1.0)
    earlier = [SimpleNamespace(epoch=2, metrics=metrics)] * (reached - 2)
    assert play.report(0, reached, 0.9, earlier=earlier) == CONTINUE
    assert [(made.trial, made.decision) for made in ledger.decisions] == [("00000", "continue"), ("00001", "stop")]
    assert play.choose() is None
    assert play.controller.statuses() == "RUNNING TERMINATED"


def test_with_a_limit_no_more_than_that_hold_a_process(ledger: Ledger) -> None:
    play = Play(ledger, 4, max_concurrent=1)
    play.controller.trials = play.controller.trials[:1]  # The feed hands out one after the other.
    values = [0.5, 0.9, 0.8, 0.4]
    for number, value in enumerate(values):
        if number:
            play.controller.trials.append(trial(number))
        assert play.choose() == number
        assert play.report(number, 2, value) == (PAUSE if number < 3 else NOOP)
    # The last one lost and gives its process up to the first of those who go on; the second waits.
    assert play.choose() == 1
    assert play.choose() == 1
    assert play.controller.statuses() == "TERMINATED PENDING PAUSED TERMINATED"
    assert play.halving.paused == 2
    assert play.report(1, 2, 0.9) == CONTINUE
    assert play.choose() is None
    assert play.report(1, 4, 0.95) == PAUSE  # The second wants its process.
    assert play.choose() == 2


def test_who_went_on_stays_so_where_an_epoch_came_out_otherwise(tmp_path: Path) -> None:
    """A damaged checkpoint, another processor: the history has new figures, the decision was made by the old ones."""
    path = tmp_path / "ledger.jsonl"
    play = Play(Ledger(path), 2)
    play.report(0, 2, 0.9)
    play.report(1, 2, 0.5)
    known = {("00000", 2): (0.4, 1.0), ("00001", 2): (0.5, 1.0)}
    again = Play(Ledger(path), 2, known=known)
    assert again.report(0, 4, 0.8) == CONTINUE  # It is alone at its rung, and waits for nobody.
    assert [(made.trial, made.decision) for made in again.halving.ledger.decisions][2:] == [("00000", "continue")]


def test_a_trial_that_is_tried_again_is_compared_with_those_that_were_decided_without_it(tmp_path: Path) -> None:
    """Their decisions stay; it goes on if its place is among the best."""
    path = tmp_path / "ledger.jsonl"
    play = Play(Ledger(path), 4)
    play.halving.fail("00003", 1, "its process died", again=True)
    for number, value in enumerate((0.9, 0.5, 0.6)):
        play.report(number, 2, value)
    before = path.read_text()
    known = {(f"{number:05}", 2): (value, 1.0) for number, value in enumerate((0.9, 0.5, 0.6))}
    for value, goes_on in ((0.8, True), (0.4, False)):
        path.write_text(before)
        ledger = Ledger(path)
        ledger.try_again()
        again = Play(ledger, 4, known=known)
        assert again.report(3, 2, value) in (CONTINUE, NOOP)
        again.choose()
        assert again.controller.trials[3].status == ("RUNNING" if goes_on else "TERMINATED")
        assert [(made.trial, made.decision) for made in ledger.decisions if made.decision != "fail"] == [
            ("00000", "continue"),
            ("00002", "stop"),
            ("00001", "stop"),
            ("00003", "continue" if goes_on else "stop"),
        ]
