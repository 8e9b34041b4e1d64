from __future__ import annotations

import csv
import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayml.errors import SearchError
from rayml.metrics import accuracy, cross_entropy
from rayml.progress import Progress
from tests.tune_jobs.small import QUIET, nodes, one_at_a_time, settings, vectors
from tune_jobs.checkpoints import newest_checkpoint
from tune_jobs.cluster import Node
from tune_jobs.search import Search, SearchResult, _know_deaths_for_memory, run_search, trial_cpus
from tune_jobs.select import select


def search(folder: Path, address: str, data: Any = None, **changes: Any) -> tuple[SearchResult, list[dict[str, str]]]:
    """A search's result and the lines of its history.csv."""
    chosen = one_at_a_time(folder, **changes)
    chosen.out.mkdir(parents=True)
    result = run_search(chosen, data or vectors(), nodes(address), chosen.out, QUIET)
    with (chosen.out / "history.csv").open(newline="") as file:
        return result, list(csv.DictReader(file))


def test_every_cell_runs_and_is_recorded(ray_cluster: str, tmp_path: Path) -> None:
    data = vectors(noise=2.5)
    result, history = search(tmp_path, ray_cluster, data)
    assert [trial.trial_id for trial in result.trials] == ["00000", "00001", "00002", "00003"]
    cells = {(trial.size_inner, trial.learning_rate) for trial in result.trials}
    assert cells == {(4, 0.001), (4, 0.05), (8, 0.001), (8, 0.05)}
    assert {(trial.status, trial.epochs) for trial in result.trials} == {("finished", 3)}
    assert Counter(row["trial_id"] for row in history) == {trial.trial_id: trial.epochs for trial in result.trials}
    for trial in result.trials:
        rows = [row for row in history if row["trial_id"] == trial.trial_id]
        assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
        accuracies = [float(row["val_accuracy"]) for row in rows]
        assert trial.val_accuracy == max(accuracies)
        assert trial.best_epoch == 1 + accuracies.index(max(accuracies))  # the first of equal ones
        assert trial.val_loss == float(rows[trial.best_epoch - 1]["val_loss"])
        # The trial's last checkpoint holds its best epoch, and scores what the table says.
        checkpoint, damaged = newest_checkpoint(tmp_path / "run" / "checkpoints" / trial.trial_id)
        assert checkpoint is not None and not damaged
        best = checkpoint.best
        logits = best.weights.logits(data.validation_features)
        assert best.epoch == trial.best_epoch
        assert accuracy(logits, data.validation_labels) == trial.val_accuracy
        assert cross_entropy(logits, data.validation_labels) == pytest.approx(trial.val_loss, rel=1e-5)
    expected = min(result.trials, key=lambda trial: (-trial.val_accuracy, trial.val_loss, trial.trial_id))
    assert select(result, data, tmp_path / "run").trial == expected


def test_one_seed_gives_one_history(ray_cluster: str, tmp_path: Path) -> None:
    """Also of what is drawn out of ranges, and with everything that a head is trained with."""
    space: dict[str, Any] = {
        "size_inner": (4,),
        "learning_rate": {"loguniform": [0.001, 0.05]},
        "dropout": 0.3,
        "weight_decay": (0.0, 0.1),
        "label_smoothing": 0.1,
        "num_samples": 1,
    }
    histories = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        _, history = search(tmp_path / name, ray_cluster, vectors(noise=2.5), seed=seed, **space)
        figures = [{key: value for key, value in row.items() if key != "seconds"} for row in history]
        histories.append(sorted(figures, key=lambda row: (row["trial_id"], int(row["epoch"]))))
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_a_trial_whose_loss_is_no_number_fails_alone(ray_cluster: str, tmp_path: Path) -> None:
    data = vectors()
    result, history = search(tmp_path, ray_cluster, data, size_inner=(4,), learning_rate=(1e30, 0.01))
    broken, sound = result.trials
    assert (broken.status, sound.status) == ("failed", "finished")
    assert "not a finite number at learning rate 1e+30" in result.errors["00000"]
    assert "00001" not in result.errors
    assert broken.epochs == sum(row["trial_id"] == "00000" for row in history)
    assert all(math.isfinite(float(row["val_loss"])) for row in history)
    assert select(result, data, tmp_path / "run").trial == sound


def test_all_trials_failed(ray_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(SearchError) as caught:
        search(tmp_path, ray_cluster, size_inner=(4,), learning_rate=(1e30, 2e30))
    first = "epoch 1: the loss is not a finite number at learning rate 1e+30"
    assert caught.value.message == f"every trial failed; the first: {first}"
    assert "--learning-rate" in caught.value.hint


def test_trials_whose_processes_died_are_tried_again_in_a_search_that_goes_on(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = one_at_a_time(tmp_path, size_inner=(4,), learning_rate=(0.01, 1e30), epochs=2, scheduler="sync")
    chosen.out.mkdir()

    def all_fail(search: Search, *arguments: Any) -> None:
        search.scheduler.fail("00000", 0, "killed for memory", again=True)
        search.scheduler.fail("00001", 1, "the loss is not a finite number")
        for cell in search.cells:
            arguments[-1][0].on_trial_complete(0, [], SimpleNamespace(config={"cell": cell}))

    with monkeypatch.context() as patch:
        patch.setattr("tune_jobs.search._tune", all_fail)
        with pytest.raises(SearchError, match="every trial failed; the first: epoch 0: killed for memory") as caught:
            run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, QUIET)
    assert "memory" in caught.value.hint and "--resume" in caught.value.hint
    assert "--learning-rate" not in caught.value.hint
    assert [trial.status for trial in Search(chosen, chosen.out).result().trials] == ["failed", "failed"]
    assert len(Search(chosen, chosen.out, goes_on=True).remaining()) == 1
    result = run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, QUIET)
    assert [trial.status for trial in result.trials] == ["finished", "failed"]
    assert list(result.errors) == ["00001"]


def test_ctrl_c_ends_a_search_that_trains_a_lost_winner_again(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune catches it and returns; all trials had ended before."""
    chosen = one_at_a_time(tmp_path, size_inner=(4,), learning_rate=(0.01, 1e-7), epochs=2)
    chosen.out.mkdir()
    before = run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, QUIET)
    shutil.rmtree(chosen.out / "checkpoints")
    begun, said = list[str](), list[str]()

    class Told(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    with monkeypatch.context() as patch:
        patch.setattr("tune_jobs.search._tune", lambda search, remaining, *_: begun.append(remaining[0]["trial"]))
        with pytest.raises(KeyboardInterrupt):
            run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, Told())
    assert begun == ["00000"]
    assert said[-1] == "search: interrupted when 1 of 2 trials had ended"
    again = run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, QUIET)
    assert [trial.val_loss for trial in again.trials] == [trial.val_loss for trial in before.trials]
    assert select(again, vectors(), chosen.out).trial.trial_id == "00000"


def test_asha_stops_what_is_behind(ray_cluster: str, tmp_path: Path) -> None:
    """One after the other, the good rate first: what comes later is below the best third at each rung."""
    changes: dict[str, Any] = {
        "size_inner": (8,),
        "learning_rate": (0.05, 1e-7, 2e-7, 3e-7),
        "epochs": 6,
        "grace_period": 1,
        "max_concurrent": 1,
    }
    data = vectors(noise=0.5)
    stopped, history = search(tmp_path / "asha", ray_cluster, data, scheduler="asha", **changes)
    assert [trial.status for trial in stopped.trials] == ["finished", "stopped", "stopped", "stopped"]
    assert [trial.epochs for trial in stopped.trials] == [6, 1, 1, 1]
    assert len(history) == sum(trial.epochs for trial in stopped.trials)
    everything, _ = search(tmp_path / "none", ray_cluster, data, **changes)
    assert [trial.epochs for trial in everything.trials] == [6, 6, 6, 6]
    assert stopped.trials[0].val_accuracy == everything.trials[0].val_accuracy


def test_a_run_that_a_machine_does_not_share_ends_the_search_at_once(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = one_at_a_time(tmp_path, size_inner=(4,), learning_rate=(0.01,), epochs=1, grace_period=1)
    chosen.out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("tune_jobs.search.FolderStore.mark", lambda store: "mark-of-another-folder")
        with pytest.raises(SearchError, match=r"run, must be one folder that all .* or none, on [0-9.]+$") as caught:
            run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, QUIET)
    assert "--resume" in caught.value.hint
    assert not (chosen.out / "checkpoints").exists()
    for _ in range(2):  # The second time nothing is left to do.
        assert len(run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, QUIET).trials) == 1
    assert len(list((chosen.out / "checkpoints").glob("mark-*"))) == 1


def test_rays_own_state_stays_in_the_runs_folder(ray_cluster: str, tmp_path: Path) -> None:
    search(tmp_path, ray_cluster, size_inner=(4,), learning_rate=(0.01,), epochs=1, grace_period=1)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["cells.csv", "checkpoints", "history.csv", "ledger.jsonl", "ray", "tensorboard", "trials.csv"]


def test_a_search_that_cannot_begin_says_why(ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    said: list[str] = []

    class Told(Progress):
        def say(self, line: str) -> None:
            said.append(line)
            if "no trial has run" in line:
                remove_placement_group(taken)

    monkeypatch.setattr("tune_jobs.waiting.SAY_AFTER_S", 2.0)
    chosen = one_at_a_time(tmp_path, size_inner=(4,), learning_rate=(0.01,), epochs=1, grace_period=1)
    chosen.out.mkdir()
    taken = placement_group([{"CPU": 1}])
    ray.get(taken.ready(), timeout=60)
    result = run_search(chosen, vectors(), nodes(ray_cluster), chosen.out, Told())
    assert [trial.status for trial in result.trials] == ["finished"]
    waits = "search: no trial has run for 2 s: waiting for the cluster to have processors free"
    assert [line for line in said if "no trial" in line] == [waits]


ONE, TWO, GPU = Node("a", 2, 0), Node("b", 8, 0), Node("c", 4, 2)


@pytest.mark.parametrize(
    ("cluster", "changes", "cpus"),
    [
        ([ONE], {}, 1),  # four cells on two processors
        ([TWO], {}, 2),
        ([TWO], {"learning_rate": (0.1,), "size_inner": (4,)}, 8),
        ([ONE, TWO], {"learning_rate": (0.1,), "size_inner": (4,)}, 8),  # never more than a machine has
        ([ONE], {"trial_cpus": 0.5}, 0.5),
        ([ONE, GPU], {"trial_gpus": 1}, 1),
        ([Node("d", 16, 0), Node("e", 4, 1)], {"trial_gpus": 1}, 1),  # those of the first can run no trial
        ([Node("f", 8, 1), Node("g", 8, 3)], {"trial_gpus": 1}, 2),  # with more, a graphics processor would idle
        ([GPU], {"trial_gpus": 1, "learning_rate": (0.1,), "size_inner": (4,)}, 4),
    ],
)
def test_processors_are_shared_out(cluster: list[Node], changes: dict[str, Any], cpus: float, tmp_path: Path) -> None:
    assert trial_cpus(settings(tmp_path, **changes), cluster) == cpus


@pytest.mark.parametrize(
    ("cluster", "changes", "received"),
    [
        ([ONE], {"trial_cpus": 3}, "at most 2 CPUs and 0 GPUs"),
        ([ONE, TWO], {"trial_gpus": 1}, "at most 8 CPUs and 0 GPUs"),
        ([TWO, GPU], {"trial_gpus": 1, "trial_cpus": 5}, "at most 4 CPUs and 2 GPUs"),
    ],
)
def test_trials_that_no_machine_has_room_for(
    cluster: list[Node], changes: dict[str, Any], received: str, tmp_path: Path
) -> None:
    with pytest.raises(SearchError, match=f"on one machine. Received: {received}"):
        trial_cpus(settings(tmp_path, **changes), cluster)


def test_a_process_killed_for_memory_is_taken_for_one_that_died(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/faults/test_memory.py has Ray kill one, which takes long."""
    from ray.air.execution import FixedResourceManager
    from ray.air.execution._internal import RayActorManager, TrackedActor
    from ray.exceptions import OutOfMemoryError

    _know_deaths_for_memory()
    monkeypatch.setattr(RayActorManager, "_cleanup_actor", lambda *_, **__: None)
    manager, told = RayActorManager(FixedResourceManager({"CPU": 1})), []
    actor = TrackedActor(1, on_error=lambda actor, error: told.append(type(error)))
    task: Any = SimpleNamespace(_tracked_actor=actor, _on_error=lambda actor, error: told.append(type(error)))
    manager._actor_task_failed(task, OutOfMemoryError("killed"))
    assert told == [OutOfMemoryError, OutOfMemoryError]


def test_what_ended_ray_tune_is_said(ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import tune

    def give_up(tuner: Any) -> None:
        raise tune.error.TuneError("Traceback (most recent call last):\n  File ...\nOSError: No space left on device\n")

    monkeypatch.setattr(tune.Tuner, "fit", give_up)
    chosen = settings(tmp_path)
    chosen.out.mkdir()
    with pytest.raises(SearchError, match=r"^Ray Tune gave up \(OSError: No space left on device\)$") as caught:
        run_search(chosen, vectors(), (ONE,), chosen.out, QUIET)
    assert isinstance(caught.value.__cause__, tune.error.TuneError)
