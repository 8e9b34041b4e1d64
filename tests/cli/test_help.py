"""What holds for every command: help with examples, -v, completion, colours only where they are wanted."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from rayml import cli
from rayml.bundle_writer import write_bundle
from rayml.cli import help as layout
from rayml.cli.tables import show_table
from rayml.errors import UsageError, install_hint
from tests.rayml import small


def commands(group: click.Group = cli.rayml, path: str = "rayml") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_teaches_by_examples(path: str) -> None:
    shown = CliRunner().invoke(cli.rayml, [*path.split()[1:], "--help"]).output
    usage = next(line for line in shown.splitlines() if line.startswith("Usage: "))
    examples = [line for line in shown.replace(usage, "").splitlines() if path in line]
    assert examples, shown
    assert "-v, --verbose" in shown
    assert max(map(len, shown.splitlines())) <= 100
    for option in COMMANDS[path].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.name
            assert option.opts[-1] in shown


def test_the_overview_lists_every_command_once() -> None:
    shown = CliRunner().invoke(cli.rayml, ["--help"], terminal_width=100).output
    for name, command in cli.rayml.commands.items():
        lines = [line for line in shown.splitlines() if line.startswith(f"  {name} ")]
        assert len(lines) == 1, name
        assert not lines[0].endswith("..."), lines
        assert command.get_short_help_str()
    listed = [name for names in layout.SECTIONS.values() for name in names]
    assert len(listed) == len(set(listed))


def test_a_command_under_no_heading_is_still_listed() -> None:
    group = layout.Commands("x", commands={"other": click.Command("other", help="Does more."), "tune": cli.tune})
    shown = CliRunner().invoke(group, ["--help"]).output
    assert shown.index("Search:") < shown.index("Others:")
    assert "  other  Does more." in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str) -> None:
    done = CliRunner().invoke(cli.rayml, ["completion", shell])
    assert done.exit_code == 0
    assert "_RAYML_COMPLETE" in done.output


@pytest.mark.parametrize(
    ("words", "place", "found"),
    [
        ("rayml tu", 1, "plain,tune"),
        ("rayml tune --back", 2, "plain,--backbone"),
        ("rayml tune --backbone efficientnetv2b0", 3, "plain,efficientnetv2b0"),
        ("rayml verify --engine onnx", 3, "plain,onnxruntime"),
    ],
)
def test_what_a_shell_completes(words: str, place: int, found: str) -> None:
    asked = {"_RAYML_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    done = subprocess.run(
        [sys.executable, "-m", "rayml"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == [found], done.stderr


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["rayml", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_verbose_shows_where_an_error_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "verify", tmp_path, "--verbose") == 2
    said = capsys.readouterr().err
    assert "rayml.cli: Python 3." in said and "Traceback" in said
    assert said.splitlines()[-2].startswith("Error: expected a bundle's folder")
    assert called(monkeypatch, "-v", "verify", tmp_path) == 2
    assert "Traceback" in capsys.readouterr().err
    assert called(monkeypatch, "verify", tmp_path) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "rayml.cli" not in said


def test_verbose_says_which_bundle_and_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "best", small.contents())
    monkeypatch.setattr(sys, "argv", ["rayml", "verify", str(bundle.path), "-v"])
    cli.main()
    said = capsys.readouterr().err
    assert bundle.digest in said and "openvino runs a graph" in said
    layout.set_verbose(False)


def ending(error: BaseException | int) -> click.Command:
    """A command that ends so."""

    @click.command()
    def end() -> None:
        if isinstance(error, int):
            click.get_current_context().exit(error)
        raise error

    return end


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/history.csv"), 1, "No space left on device: run/hist"),
        (PermissionError(errno.EACCES, "Permission denied", "run"), 1, "Error: Permission denied: run"),
        (UsageError("epochs must be 1", "Say so."), 2, "Error: epochs must be 1\nSay so."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (ModuleNotFoundError("No module", name="matplotlib.figure"), 1, 'pip install ".[report]"'),
        (7, 7, ""),
    ],
)
def test_how_a_command_ends(
    error: Any, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.rayml.commands, "end", ending(error))
    assert called(monkeypatch, "end") == code
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err and said.out == "" and len(said.err.splitlines()) <= 3


@pytest.mark.parametrize("package", ["fsspec", "pandas", "pyarrow"])
def test_what_ray_tune_misses_is_named(package: str) -> None:
    """Ray raises an `ImportError` of its own, as where only `.[serve]` is installed."""
    code = (
        "import sys\n"
        "sys.modules[sys.argv.pop()] = None\n"
        "import click\n"
        "from rayml import cli\n"
        "@cli.rayml.command()\n"
        "def end():\n"
        "    import ray.tune\n"
        "sys.argv = ['rayml', 'end']\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, timeout=120)
    said = f"Error: this command needs the package {package}, which is not installed\n{install_hint('tune')}\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.rayml.commands, "end", ending(ZeroDivisionError("oops")))
    monkeypatch.setattr(sys, "argv", ["rayml", "end"])
    with pytest.raises(ZeroDivisionError, match="oops"):
        cli.main()


def table(environment: dict[str, str], *, columns: int | None) -> str:
    """What `show_table` prints into a terminal so wide, or into a pipe."""
    code = (
        "from rayml.cli.tables import show_table\n"
        "show_table({'class': 'left', 'n': 'right'}, [('[red]' + 'long ' * 30, '1'), ('b', '2')], marked={1})"
    )
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    env = {**plain, "TERM": "xterm-256color", **environment}
    if columns is None:
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60).stdout
    ours, theirs = pty.openpty()
    env["COLUMNS"] = str(columns)
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=theirs) as process:
        os.close(theirs)
        data = b""
        with contextlib.suppress(OSError):  # EIO is a terminal's end.
            while part := os.read(ours, 4096):
                data += part
        process.wait(60)
    os.close(ours)
    return data.decode()


def test_tables_fit_the_terminal_and_pipes_get_whole_lines() -> None:
    narrow = table({}, columns=40)
    assert "\x1b[" in narrow
    plain = table({"NO_COLOR": "1"}, columns=40)
    assert "\x1b[3" not in plain  # no colour; bold is none
    assert max(map(len, plain.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())) <= 40
    piped = table({}, columns=None)
    assert "\x1b" not in piped
    assert [line.split()[-1] for line in piped.splitlines()] == ["n", "1", "2"]
    assert "[red]long long" in piped


def test_an_empty_table_is_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    show_table({"class": "left"}, [])
    assert capsys.readouterr().out.split() == ["class"]
