"""`rayml deploy`: another version into a running server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayml.cli.model import json_option
from rayml.cli.versions import answer_with, go_live, in_replicas, name_option, say_waiting, verified
from rayml.errors import ServerError, UsageError

if TYPE_CHECKING:
    from rayml.bundle import Bundle
    from rayml.registry import Registry


@click.command()
@click.argument("target", metavar="BUNDLE_OR_MODELS", type=click.Path(path_type=Path))
@click.option("--address", metavar="URL", help="The server, where several run: http://127.0.0.1:8000.")
@name_option
@click.option("--version", type=click.IntRange(1), help="Of MODELS, to make live; the one that is live by default.")
@click.option("--shadow", type=click.IntRange(1), help="Try this version of MODELS on live traffic instead.")
@click.option("--floor", type=click.FloatRange(0, 1), default=0.98, show_default=True, help="Share to agree on.")
@click.option("--no-shadow", is_flag=True, help="End the trial.")
@json_option
def deploy(
    target: Path,
    address: str | None,
    name: str | None,
    version: int | None,
    shadow: int | None,
    floor: float,
    no_shadow: bool,
    as_json: bool,
) -> None:
    """Bring a version into a running server.

    No request fails: every replica verifies and warms it while it answers with the old one, and only when all are ready
    do they change to it. If one of them cannot, none does. A shadow is asked what the live version has answered, at the
    lowest priority, and may become live only if it agrees on the floor's share of the pictures.

    \b
    rayml deploy run/best                         into the one server that runs here
    rayml deploy models --version 3
    rayml deploy models --shadow 4 --floor 0.98   and `rayml models models` to see how it does
    """
    from rayml.registry import Registry

    if (shadow is not None) + no_shadow + (version is not None) > 1:
        raise UsageError("one of --version, --shadow and --no-shadow was expected. Received: several")
    models = Registry(target) if Registry.is_one(target) else None
    tries = shadow is not None or no_shadow
    if models is None:
        if tries or version is not None:
            raise UsageError(f"a folder of models was expected. Received: {target}", "rayml promote RUN MODELS")
        bundle: Bundle | None = verified(target)
    else:
        name = models.one_name(name)
        bundle = None if no_shadow else _chosen(models, name, version if shadow is None else shadow)
    if models is not None and name is not None and address is None and (tries or _is_followed(models, name)):
        registry = models
    else:
        registry, name = _of_server(address, models, name)
    if tries:
        number = set_shadow(registry, name, bundle, floor)
        words = f"{name} has no shadow." if number is None else f"{name} version {number} is tried on live traffic."
        answer_with(as_json, {"name": name, "shadow": number, "floor": None if no_shadow else floor}, words)
        return
    assert bundle is not None
    with registry.writing(say_waiting):
        number = registry.add(bundle, name)
        replicas = go_live(registry, name, number, bundle)
    answer: dict[str, Any] = {"name": name, "version": number, "bundle": bundle.digest, "replicas": replicas}
    answer_with(as_json, answer, f"{name} version {number} is live{in_replicas(replicas)}.")


def set_shadow(registry: Registry, name: str, bundle: Bundle | None, floor: float) -> int | None:
    """Try a verified bundle on live traffic, or none; returns its version, which it gets here if it has none yet.

    Raises:
        UsageError: it is live, or none is.
    """
    from rayml.registry import Shadow

    with registry.writing(say_waiting):
        state = registry.state(name)
        if bundle is None:
            registry.write_state(name, replace(state, shadow=None))
            return None
        if state.live is None:
            raise UsageError(f"a version of {name} must be live. Received: none", "rayml promote RUN MODELS")
        version = registry.add(bundle, name)
        if version == state.live:
            raise UsageError(f"a version that is not live was expected. Received: {version}, which is")
        registry.write_state(name, replace(state, shadow=Shadow(version, floor)))
    return version


def _of_server(address: str | None, models: Registry | None, name: str | None) -> tuple[Registry, str]:
    """The folder that a server follows, and which model of it: MODELS itself, or one that is given MODELS' version."""
    from rayml.registry import Registry
    from serving.servers import find_server

    server = find_server(address)
    registry = Registry(server.models)
    if models is not None and models.root.resolve() == registry.root.resolve() and name != server.name:
        raise UsageError(f"{server.name} was expected, which {server.url} serves. Received: --name {name}")
    if not _is_followed(registry, server.name):
        raise ServerError(f"a replica of {server.url} must report. Received: none", "try again in a moment")
    return registry, server.name


def _chosen(registry: Registry, name: str, version: int | None) -> Bundle:
    number = registry.state(name).live if version is None else version
    if number is None:
        raise UsageError(f"a version of {name} must be live. Received: none", "rayml promote RUN MODELS")
    return verified(registry.path(name, number))


def _is_followed(registry: Registry, name: str) -> bool:
    from serving.replicas import reports

    return bool(reports(registry, name))
