"""promote, models, rollback and deploy as a person types them; deploy into a real server is in tests/serving."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from rayml.bundle import Bundle
from rayml.registry import Registry, Shadow, State
from serving.replicas import Reporter
from serving.servers import noted
from tests.cli.test_commands import assert_refused, run
from tests.serving.tiny_bundle import write_tiny_bundle

__all__ = ["run"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of a model, a model of another name, and one that is not reproduced here."""
    folder = tmp_path_factory.mktemp("bundles")
    return [
        write_tiny_bundle(folder / "b1"),
        write_tiny_bundle(folder / "b2", temperature=2.0),
        write_tiny_bundle(folder / "other", name="other"),
        write_tiny_bundle(folder / "foreign", golden_factor=1.5),
    ]


def test_a_model_s_life(run: Any, tmp_path: Path, bundles: list[Path]) -> None:
    models, run_folder = tmp_path / "models", tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "best").symlink_to(bundles[0])
    done = run("promote", run_folder, models)
    assert (done.returncode, done.stdout) == (0, "primaries version 1 is live.\n"), done
    digest = Bundle.open(bundles[1]).digest
    done = run("promote", bundles[1], models, "--json")
    assert json.loads(done.stdout) == {
        "name": "primaries",
        "version": 2,
        "live": True,
        "bundle": digest,
        "replicas": 0,
    }
    listed = json.loads(run("models", models, "--json").stdout)
    (model,) = listed["models"]
    assert (model["name"], model["live"], model["before"], model["shadow"]) == ("primaries", 2, [1], None)
    assert [(v["version"], v["live"]) for v in model["versions"]] == [(1, False), (2, True)]
    assert model["versions"][1]["bundle"] == digest
    done = run("rollback", models)
    assert (done.returncode, done.stdout) == (0, "primaries version 1 is live again instead of 2.\n")
    assert " *    1" in run("models", models).stdout
    assert_refused(run("rollback", models), 2, "an older version must have been live. Received: only version 1")
    done = run("promote", models / "primaries" / "2", models)  # An older version by its own folder.
    assert done.stdout == "primaries version 2 is live.\n"


def test_what_promote_refuses(run: Any, tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    empty = tmp_path / "run"
    empty.mkdir()
    assert_refused(run("promote", empty, models), 2, "expected a run with a bundle", "rayml tune")
    assert_refused(run("promote", tmp_path / "nothing", models), 2, "which does not exist")
    assert_refused(run("promote", bundles[3], models), 2, "must reproduce the golden logits")
    assert not models.exists()
    assert run("promote", bundles[0], models).returncode == 0
    assert_refused(
        run("promote", bundles[0], models), 2, "not hold yet was expected. Received: version 1, which is live"
    )
    assert_refused(run("promote", bundles[1], models, "--name", "../x"), 2, "a model's name must be")
    (models / "notes.txt").touch()
    for command in (["promote", bundles[1], models], ["models", models], ["rollback", models]):
        assert_refused(run(*command), 2, "must hold models, a folder for each. Received: notes.txt")
    assert_refused(run("promote", bundles[1], bundles[0]), 2, "must hold models. Received: one bundle")
    assert_refused(run("models", tmp_path / "nothing"), 2, "MODELS must be a folder")
    assert Registry.is_one(models) and json.loads((models / "primaries" / "live.json").read_text())["live"] == 1


def test_several_models(run: Any, tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    assert run("models", tmp_path).stdout.strip().endswith(f"rayml promote RUN {tmp_path}")
    for bundle in bundles[:3]:
        assert run("promote", bundle, models).returncode == 0
    assert_refused(run("rollback", models), 2, "must hold one model. Received: other, primaries", "--name")
    assert_refused(run("rollback", models, "--name", "third"), 2, "third must be a model")
    assert run("rollback", models, "--name", "primaries").stdout == "primaries version 1 is live again instead of 2.\n"
    assert run("promote", bundles[1], models, "--name", "other").stdout == "other version 2 is live.\n"
    assert run("rollback", models, "--name", "other").returncode == 0
    # A stored version keeps the name that it has there, whatever its bundle's own is.
    assert run("promote", models / "other" / "2", models).stdout == "other version 2 is live.\n"
    assert_refused(run("serve", models), 2, "must hold one model. Received: other, primaries", "--name")


def test_a_version_that_is_only_stored(run: Any, tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    run("promote", bundles[0], models)
    assert run("promote", bundles[1], models, "--keep-live").stdout == "primaries version 2 is stored.\n"
    assert Registry(models).state("primaries") == State(live=1)
    assert_refused(run("promote", bundles[1], models, "--keep-live"), 2, "was expected. Received: version 2")
    assert run("deploy", models, "--shadow", "2", "--floor", "0.9").stdout.startswith("primaries version 2 is tried")
    shown = run("models", models).stdout
    assert "shadow 2: nothing compared yet of 0 pictures (floor 0.9)" in shown
    assert_refused(run("promote", bundles[1], models), 1, "must be compared on 100 pictures", "--no-shadow")
    assert Registry(models).state("primaries").live == 1
    assert run("deploy", models, "--no-shadow").stdout == "primaries has no shadow.\n"
    assert run("promote", bundles[1], models).stdout == "primaries version 2 is live.\n"
    assert_refused(run("deploy", models, "--shadow", "2"), 2, "a version that is not live was expected")
    assert_refused(run("deploy", models, "--shadow", "7"), 2, "must have a version 7")


def test_models_of_which_none_is_live_yet(
    run: Any, tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    models = tmp_path / "models"
    assert run("promote", bundles[0], models, "--keep-live").returncode == 0
    hint = "rayml promote RUN MODELS"
    for command in (["deploy", models], ["deploy", models, "--shadow", "1"], ["serve", models]):
        assert_refused(run(*command), 2, "a version of primaries must be live. Received: none", hint)
    assert_refused(
        run("deploy", models, "--version", "1"), 1, "must run on this machine. Received: none", "rayml serve"
    )


def test_a_score_that_is_no_number(run: Any, tmp_path: Path) -> None:
    bundle, models = write_tiny_bundle(tmp_path / "b", metrics={"accuracy": "0.9"}), tmp_path / "models"
    run("promote", bundle, models)
    done = run("models", models)
    assert done.returncode == 0 and done.stdout.rstrip().endswith(Bundle.open(bundle).digest[:12]), done


def test_deploy_to_an_address_where_another_server_reports_in_models(
    run: Any, tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    models, others = tmp_path / "models", tmp_path / "others"
    for bundle, folder in ((bundles[1], models), (bundles[0], models), (bundles[0], others)):
        run("promote", bundle, folder)
    for folder in (models, others):
        Reporter(Registry(folder), "primaries").write({"live": None, "ready": [], "failed": {}, "shadow": None})
    assert_refused(run("deploy", models, "--no-shadow", "--address", "127.0.0.1:9"), 1, "must be a server that you")
    address = "http://127.0.0.1:8000"
    with noted(address, others, "primaries"):
        done = json.loads(run("deploy", models, "--shadow", "1", "--address", address, "--json").stdout)
        assert (done["name"], done["shadow"]) == ("primaries", 2)
        assert Registry(others).state("primaries") == State(live=1, shadow=Shadow(2, 0.98))
        assert Registry(models).state("primaries").shadow is None
        assert run("deploy", models, "--no-shadow", "--address", address).returncode == 0
        assert Registry(others).state("primaries") == State(live=1)
        # Nobody lives behind these reports, who could make a version ready.
        monkeypatch.setattr(sys.modules["rayml.cli.deploy"], "go_live", lambda *_: 1)
        done = run("deploy", models, "--version", "1", "--address", address)
        assert (done.returncode, done.stdout) == (0, "primaries version 2 is live in 1 replica.\n"), done
    with noted(address, models, "other"):
        assert_refused(run("deploy", models, "--no-shadow", "--address", address), 2, "other was expected")


def test_deploy_without_a_server(
    run: Any, tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    models = tmp_path / "models"
    run("promote", bundles[0], models)
    for target in (bundles[1], models):
        assert_refused(run("deploy", target), 1, "must run on this machine. Received: none", "rayml serve")
    assert_refused(run("deploy", models, "--address", "http://127.0.0.1:9"), 1, "must be a server that you")
    assert_refused(run("deploy", bundles[1], "--version", "2"), 2, "a folder of models was expected")
    assert_refused(run("deploy", models, "--version", "1", "--no-shadow"), 2, "Received: several")
    assert_refused(run("deploy", tmp_path / "nothing"), 2, "which does not exist")
    assert_refused(run("serve", bundles[0], "--shadow", "1"), 2, "--shadow needs a folder of models")
    assert Registry(models).state("primaries") == State(live=1)


def test_a_damaged_version_is_listed_as_such(run: Any, tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    run("promote", bundles[0], models)
    run("promote", bundles[1], models)
    (models / "primaries" / "1" / "head.npz").write_bytes(b"x")
    assert "     1  damaged: head.npz must have sha256" in run("models", models).stdout
    assert_refused(run("rollback", models), 2, "head.npz must have sha256")
    assert Registry(models).state("primaries").live == 2


def test_a_bundle_s_file_forges_no_line(run: Any, tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    run("promote", bundles[0], models)
    (models / "primaries" / "1" / "evil\n *   99  fine\x1b[31m").touch()
    done = run("models", models)
    assert done.returncode == 0 and r"evil\n *   99  fine\x1b[31m" in done.stdout, done
    assert len(done.stdout.splitlines()) == 2 and "\x1b" not in done.stdout


def test_a_live_version_that_is_not_there_is_listed_as_such(run: Any, tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    run("promote", bundles[1], models)
    run("promote", bundles[0], models)
    run("rollback", models)
    shutil.rmtree(models / "primaries" / "1")
    (model,) = json.loads(run("models", models, "--json").stdout)["models"]
    assert model["versions"][0] == {"version": 1, "live": True, "error": "its folder is not there"}
    assert [version["version"] for version in model["versions"]] == [1, 2]
    assert " *    1  damaged: its folder is not there" in run("models", models).stdout
