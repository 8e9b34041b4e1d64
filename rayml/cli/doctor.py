"""`rayml doctor`: whether this machine can do what rayml asks of it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from rayml.cli.model import json_option


@click.command(short_help="What this machine has, and what is in the way.")
@click.option("--address", metavar="auto|HOST:PORT", help="Also ask this Ray cluster what it has.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to be served on.")
@click.option("--cache", metavar="DIR", type=click.Path(path_type=Path), help="Where backbones and features would be.")
@json_option
def doctor(address: str | None, port: int, cache: Path | None, as_json: bool) -> None:
    """Check versions, processors, memory, engines, Ray, disk, ports and caches of this machine.

    Ends with 1 if something that rayml needs is broken; what is only missing for a part of it is a warning.

    \b
    rayml doctor
    rayml doctor --address 10.0.0.5:6379
    rayml doctor --json | jq '.checks[] | select(.status != "ok")'
    """
    from rayml.cli.machine import examine

    checks = examine(address, port, cache)
    broken = [check for check in checks if check.status == "error"]
    if as_json:
        click.echo(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}))
    else:
        colours = {"ok": "green", "warning": "yellow", "error": "red"}
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(
                f"{click.style(f'{check.status:7}', colours[check.status])}  {check.name:{width}}  {check.detail}"
            )
            if check.hint:
                click.echo(f"{'':7}  {'':{width}}  {check.hint}")
        click.echo(f"{len(broken)} of {len(checks)} checks failed." if broken else "Nothing is broken.")
    if broken:
        sys.exit(1)
