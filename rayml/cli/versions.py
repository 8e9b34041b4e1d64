"""`rayml promote`, `models` and `rollback`: numbered versions, and which one is live."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayml.cli.model import json_option
from rayml.errors import RaymlError, UsageError
from rayml.folders import printable

if TYPE_CHECKING:
    from rayml.bundle import Bundle
    from rayml.registry import Registry, State

models_argument = click.argument("models", metavar="MODELS", type=click.Path(path_type=Path))
name_option = click.option("--name", metavar="NAME", help="Which model, where MODELS holds several.")


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@models_argument
@click.option("--name", metavar="NAME", help="The model's name; that of the bundle by default.")
@click.option("--keep-live", is_flag=True, help="Only store it; the version that is live stays live.")
@json_option
def promote(run: Path, models: Path, name: str | None, keep_live: bool, as_json: bool) -> None:
    """Make a run's bundle the next live version.

    It is copied into MODELS after it was verified: its digests, and that this machine reproduces its golden pictures.
    Servers that run on MODELS make it ready, and answer with it once all of them can. Older versions are kept, see
    `rayml rollback`; one of them is made live again by its own folder.

    \b
    rayml promote run models
    rayml promote models/clothing/1 models
    """
    from rayml.registry import Registry

    bundle = verified(run)
    registry = Registry(models)
    if name is None:  # A version of MODELS keeps the name that it has there.
        stored = bundle.path.resolve().parent
        name = stored.name if stored.parent == models.resolve() else bundle.record.name
    with registry.writing(say_waiting):
        known = registry.find(name, bundle.digest) if name in registry.names() else None
        state = registry.state(name)
        if known is not None and (keep_live or known == state.live):
            is_live = ", which is live" if known == state.live else ""
            raise UsageError(
                f"a bundle that {models} does not hold yet was expected. Received: version {known}{is_live}"
            )
        number = registry.add(bundle, name)
        replicas = 0
        if not keep_live:
            replicas = go_live(registry, name, number, bundle)
    answer = {"name": name, "version": number, "live": not keep_live, "bundle": bundle.digest, "replicas": replicas}
    words = f"{name} version {number} is stored" if keep_live else f"{name} version {number} is live"
    answer_with(as_json, answer, words + in_replicas(replicas) + ".")


@click.command()
@models_argument
@json_option
def models(models: Path, as_json: bool) -> None:
    """List versions, and which is live.

    And how a shadow compares, see `rayml deploy`.

    \b
    rayml models models --json
    """
    from rayml.registry import Registry

    if not models.is_dir():
        raise UsageError(f"MODELS must be a folder. Received: {models}, which is not there")
    registry = Registry(models)
    found = [_describe(registry, name) for name in registry.names()]
    if as_json:
        click.echo(json.dumps({"models": found}))
        return
    if not found:
        click.echo(f"{models} holds no model yet: rayml promote RUN {models}")
    for model in found:
        running = len(model["replicas"])
        click.echo(f"{model['name']}: version {model['live'] or 'none'} is live{in_replicas(running)}")
        for version in model["versions"]:
            mark = "*" if version["version"] == model["live"] else " "
            if "error" in version:
                click.echo(f" {mark} {version['version']:>4}  damaged: {printable(version['error'])}")
                continue
            accuracy = version["accuracy"]
            # A bundle's metrics may be any JSON.
            score = f"  validation accuracy {accuracy:.4f}" if isinstance(accuracy, int | float) else ""
            click.echo(f" {mark} {version['version']:>4}  {version['created']}  {version['bundle'][:12]}{score}")
        if model["shadow"] is not None:
            click.echo(_shadow_words(model["shadow"]))


@click.command()
@models_argument
@name_option
@json_option
def rollback(models: Path, name: str | None, as_json: bool) -> None:
    """Make the version before live again.

    Servers that run on MODELS follow.

    \b
    rayml rollback models
    """
    from rayml.registry import Registry
    from serving.deploy import switch

    registry = Registry(models)
    name = registry.one_name(name)
    with registry.writing(say_waiting):
        old = registry.state(name)
        state = old.rolled_back()
        assert state.live is not None
        bundle = verified(registry.path(name, state.live))
        replicas = switch(registry, name, state, _say)
    answer = {"name": name, "version": state.live, "was": old.live, "bundle": bundle.digest, "replicas": replicas}
    answer_with(
        as_json, answer, f"{name} version {state.live} is live again instead of {old.live}{in_replicas(replicas)}."
    )


def verified(path: Path) -> Bundle:
    """The bundle of a run, whole, and right on this machine."""
    from rayml.predictor import Predictor
    from rayml.registry import find_bundle

    bundle = find_bundle(path)
    Predictor(bundle).check_golden()
    return bundle


def go_live(registry: Registry, name: str, number: int, bundle: Bundle) -> int:
    """Make a stored version live, here and in all replicas; returns their number. Inside `registry.writing()`."""
    from serving.deploy import check_shadow, switch

    state = registry.state(name)
    check_shadow(registry, name, state, number)
    _say_other_classes(registry, name, state, bundle)
    return switch(registry, name, state.with_live(number), _say)


def _describe(registry: Registry, name: str) -> dict[str, Any]:
    from rayml.bundle import Bundle
    from serving.deploy import agreement
    from serving.replicas import reports

    state = registry.state(name)
    replicas = reports(registry, name)
    versions: list[dict[str, Any]] = []
    for number in registry.versions(name):
        entry: dict[str, Any] = {"version": number, "live": number == state.live}
        try:
            bundle = Bundle.open(registry.path(name, number))
            record = bundle.record
            entry |= {"bundle": bundle.digest, "created": record.created, "classes": list(record.classes)}
            entry |= {"accuracy": record.metrics.get("accuracy"), "backbone": record.backbone_name}
        except RaymlError as error:
            entry["error"] = error.message
        versions.append(entry)
    if state.live is not None and all(entry["version"] != state.live for entry in versions):
        versions.append({"version": state.live, "live": True, "error": "its folder is not there"})
        versions.sort(key=lambda entry: entry["version"])
    compared = agreement(state, replicas)
    return {
        "name": name,
        "live": state.live,
        "before": list(state.before),
        "versions": versions,
        "shadow": None if compared is None else compared.to_json(),
        "replicas": [{"replica": r.replica, "live": None if r.live is None else int(r.live)} for r in replicas],
    }


def _shadow_words(shadow: dict[str, Any]) -> str:
    share = "nothing compared yet" if shadow["agreement"] is None else f"agrees on {shadow['agreement']:.4f}"
    words = f"   shadow {shadow['version']}: {share} of {shadow['compared']} pictures (floor {shadow['floor']:g})"
    if shadow["dropped"]:
        words += f", {shadow['dropped']} dropped"
    if shadow["live_ms"] and shadow["shadow_ms"]:
        live, mine = shadow["live_ms"], shadow["shadow_ms"]
        words += f"; p50 {mine['p50']:g} ms, p99 {mine['p99']:g} ms, live {live['p50']:g} and {live['p99']:g} ms"
    return words + "".join(f"\n   {printable(error)}" for error in shadow["errors"])


def _say_other_classes(registry: Registry, name: str, state: State, bundle: Bundle) -> None:
    """Clients may count on the classes: other ones are allowed, and said."""
    from rayml.bundle import Bundle

    if state.live is None:
        return
    with suppress(RaymlError):  # A damaged version may well be replaced.
        old, new = Bundle.open(registry.path(name, state.live)).record.classes, bundle.record.classes
        added = ", ".join(label for label in new if label not in old) or "none"
        gone = ", ".join(label for label in old if label not in new) or "none"
        if set(old) != set(new):
            _say(f"Other classes than version {state.live}: new {added}; gone {gone}.")


def in_replicas(count: int) -> str:
    """Where it is live, or nothing where no server runs."""
    return f" in {count} replica{'s' if count > 1 else ''}" if count else ""


def _say(words: str) -> None:
    click.echo(words, err=True)


def say_waiting() -> None:
    """Why nothing happens for the moment."""
    _say("Another rayml writes to MODELS; waiting for it ...")


def answer_with(as_json: bool, answer: dict[str, Any], words: str) -> None:
    """The command's last word, for a program or for a person."""
    click.echo(json.dumps(answer) if as_json else words)
