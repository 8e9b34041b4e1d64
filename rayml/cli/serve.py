"""`rayml serve`: a model behind HTTP, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import click

from rayml.cli.deploy import set_shadow
from rayml.cli.versions import verified
from rayml.errors import UsageError

AUTO = "auto"


def _count_or_auto(_context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    if value == AUTO:
        return None
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise click.BadParameter(f"must be {AUTO} or a whole number above 0. Received: {value}", param=parameter)
    return number


@click.command()
@click.argument("bundle", metavar="BUNDLE_OR_MODELS", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "openvino", "onnxruntime"]),
    default=AUTO,
    show_default=True,
    help="What runs the model.",
)
@click.option(
    "--precision",
    type=click.Choice([AUTO, "float32", "bfloat16", "int8"]),
    default=AUTO,
    show_default=True,
    help="What it computes in; auto: what the bundle was made in.",
)
@click.option(
    "--replicas",
    callback=_count_or_auto,
    default=AUTO,
    metavar="auto|N",
    show_default=True,
    help="Processes; auto is 1.",
)
@click.option("--max-replicas", type=click.IntRange(1), metavar="N", help="Start up to N while they are busy.")
@click.option(
    "--threads",
    callback=_count_or_auto,
    default=AUTO,
    metavar="auto|N",
    show_default=True,
    help="Threads each; auto: all cores.",
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="API keys, one a line; requests must show one. Changes to the file count at once.",
)
@click.option(
    "--allow-url-host",
    "allow_url_hosts",
    multiple=True,
    metavar="HOST",
    help="Fetch pictures by URL from this public host, from *.HOST below it, or with * from any; repeatable.",
)
@click.option(
    "--access-log", is_flag=True, help="A line of JSON for each request on standard error, not only failures."
)
@click.option("--name", metavar="NAME", help="Which model, where MODELS holds several.")
@click.option("--shadow", type=click.IntRange(1), help="Try this version of MODELS on live traffic.")
@click.option("--floor", type=click.FloatRange(0, 1), default=0.98, show_default=True, help="Share it must agree on.")
def serve(
    bundle: Path,
    host: str,
    port: int,
    engine: str,
    precision: str,
    replicas: int | None,
    max_replicas: int | None,
    threads: int | None,
    api_key_file: str | None,
    allow_url_hosts: tuple[str, ...],
    access_log: bool,
    name: str | None,
    shadow: int | None,
    floor: float,
) -> None:
    """Answer over HTTP until Ctrl-C.

    With a bundle, or with the live version in MODELS. The address is printed once a picture of the bundle sent to it
    has come back with the right answer. A server of MODELS follows `rayml promote` and `rayml rollback`; `rayml deploy`
    brings a version into any server.

    \b
    Examples:
      rayml serve run/best
      rayml serve run/best --host 0.0.0.0 --api-key-file keys.txt
      rayml serve run/best --allow-url-host images.example.com --access-log
      rayml serve models --shadow 3 --floor 0.98
    """
    from rayml.registry import Registry
    from serving.config import ServeSettings
    from serving.run import serve_forever

    settings = ServeSettings(
        host=host,
        port=port,
        engine=engine,
        precision=precision,
        replicas=replicas,
        max_replicas=max_replicas,
        threads=threads,
        api_key_file=api_key_file,
        allow_url_hosts=allow_url_hosts,
        access_log=access_log,
        model=name,
    )
    if shadow is not None:
        if not Registry.is_one(bundle):
            raise UsageError(f"--shadow needs a folder of models. Received: {bundle}", "rayml promote RUN MODELS")
        registry = Registry(bundle)
        model = registry.one_name(name)
        set_shadow(registry, model, verified(registry.path(model, shadow)), floor)
        click.echo(f"{model} version {shadow} is tried on live traffic.", err=True)

    def announce(url: str) -> None:
        click.echo(f"Serving {bundle} on {url}")
        click.echo(f"  {url}/ in a browser takes pictures, too")
        click.echo(f"  curl --data-binary @shirt.jpg -H 'content-type: image/jpeg' {url}/predict")
        click.echo("Ctrl-C ends it.")

    click.echo(f"Starting Ray Serve for {bundle} ...", err=True)
    serve_forever(bundle, settings, announce)
    click.echo("Ended.", err=True)
