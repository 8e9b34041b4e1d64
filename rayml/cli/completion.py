"""`rayml completion`: what makes a shell complete commands, options and their values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Let a shell complete commands and options.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete rayml's commands and options with the Tab key.

    \b
    echo 'eval "$(rayml completion bash)"' >> ~/.bashrc
    echo 'eval "$(rayml completion zsh)"' >> ~/.zshrc
    rayml completion fish > ~/.config/fish/completions/rayml.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "rayml", "_RAYML_COMPLETE").source())
