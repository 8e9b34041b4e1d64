"""The project's shape: who may import whom, what an import may load, what a file may name.

Each rule is a plain function from text to findings, and each is also fed a planted mistake, so that a rule that
stopped seeing anything would fail here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rayml", "tune_jobs", "serving")
# What a classifier is knows neither Ray nor HTTP; `rayml.cli` is the one door that may open all rooms.
_NOT_IN_RAYML = {"ray", "fastapi", "starlette", "uvicorn", "requests", "tune_jobs", "serving"}
_TENSORFLOW = ("tensorflow", "keras", "tf2onnx")
# Written in two halves, so that this file does not find itself.
_FORBIDDEN_TEXT = {
    "a path of one machine": ("/" + "work/", "/" + "home/", "/" + "root/", "/" + "Users/", "/" + "opt/wheels"),
    "a package registry": (
        "pypi." + "org",
        "python" + "hosted",
        "--index" + "-url",
        "--extra" + "-index",
        "--find" + "-links",
    ),
}
_TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".txt", ".in", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".cfg"}
_FOLDERS = (".ci", ".github", "bench", "docs", "k8s", "requirements", "scripts", "tests", *PACKAGES)


# --- rules


def imported_names(source: str, package: str) -> set[str]:
    """Every module that the source imports anywhere, inside functions too, with relative names made absolute."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_call(node.func) and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                names.add(argument.value)
    return names


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def wrong_imports(module: str, source: str, is_package: bool = False) -> list[str]:
    """What the module imports against the one direction."""
    top = module.split(".")[0]
    if top == "rayml":
        banned = set() if module.split(".")[:2] == ["rayml", "cli"] else _NOT_IN_RAYML
    else:
        banned = {"tune_jobs", "serving"} - {top}
    package = module if is_package else module.rpartition(".")[0]
    found = {name.split(".")[0] for name in imported_names(source, package)} & banned
    return [f"{module} imports {name}" for name in sorted(found)]


def forbidden_text(name: str, text: str) -> list[str]:
    """Machine paths and registries that the text names."""
    return [f"{name} names {what}: {word}" for what, words in _FORBIDDEN_TEXT.items() for word in words if word in text]


def orphans(tests: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Tests of a package without the module that they are named after.

    Arguments:
        tests: paths under tests/, e.g. `rayml/test_images.py`.
        modules: paths of modules and packages without ending, e.g. `rayml/images`.
    """
    known = set(modules)
    lost = []
    for test in tests:
        path = Path(test)
        if path.parts[0] in PACKAGES and path.name.startswith("test_"):
            subject = path.with_name(path.stem.removeprefix("test_")).as_posix()
            if subject not in known:
                lost.append(f"tests/{test} has no {subject}.py")
    return lost


def loaded_by(modules: Iterable[str], suspects: Iterable[str]) -> list[str]:
    """Which of the suspects a fresh interpreter loads when it imports the modules, with the first that led to each."""
    code = f"""
import importlib, sys
seen = set()
for module in {tuple(modules)!r}:
    importlib.import_module(module)
    found = set({tuple(suspects)!r}) & set(sys.modules) - seen
    seen |= found
    for name in sorted(found):
        print(module, "loads", name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- the project


def _modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _files() -> Iterator[Path]:
    """The project's own text files: the folders that belong to it, and what lies at the top."""
    candidates = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a worktree's pointer
    for folder in _FOLDERS:
        candidates += (path for path in (ROOT / folder).rglob("*") if path.is_file())
    for path in sorted(candidates):
        if path.suffix in _TEXT_SUFFIXES and "__pycache__" not in path.parts:
            yield path


def test_imports_go_one_way() -> None:
    modules = list(_modules())
    assert len(modules) > 3
    found = [
        line
        for name, path in modules
        for line in wrong_imports(name, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("rayml.images", "import ray", ["rayml.images imports ray"]),
        ("rayml.images", "def f():\n    from ray import tune", ["rayml.images imports ray"]),
        ("rayml.images", "import importlib\nimportlib.import_module('requests')", ["rayml.images imports requests"]),
        (
            "rayml.data",
            "from tune_jobs.search import x\nimport serving",
            ["rayml.data imports serving", "rayml.data imports tune_jobs"],
        ),
        ("rayml.climate", "import uvicorn", ["rayml.climate imports uvicorn"]),
        ("rayml.cli.tune", "import tune_jobs.run, serving.run", []),
        ("rayml.bundle", "from . import errors\nimport rayml.rays\nimport arrays", []),
        ("tune_jobs.trial", "import ray\nfrom rayml import head", []),
        ("tune_jobs.trial", "import serving.app", ["tune_jobs.trial imports serving"]),
        ("serving.app", "if 1:\n    import tune_jobs", ["serving.app imports tune_jobs"]),
    ],
)
def test_a_planted_import_is_caught(module: str, source: str, found: list[str]) -> None:
    assert wrong_imports(module, source) == found


def test_relative_imports_are_read() -> None:
    assert "serving.limits" in imported_names("from .. import limits", "serving.protocols")
    assert "rayml.errors.UsageError" in imported_names("from .errors import UsageError", "rayml")


def test_each_test_has_its_module() -> None:
    tests = [path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert orphans(tests, (name.replace(".", "/") for name, _ in _modules())) == []


def test_an_orphan_is_caught() -> None:
    lost = orphans(["rayml/test_gone.py", "rayml/test_images.py", "hostile/test_any.py"], ["rayml/images"])
    assert lost == ["tests/rayml/test_gone.py has no rayml/gone.py"]


def test_files_name_no_machine_and_no_registry() -> None:
    files = list(_files())
    assert ROOT / "pyproject.toml" in files
    found = [
        line
        for path in files
        for line in forbidden_text(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("words", _FORBIDDEN_TEXT.values(), ids=_FORBIDDEN_TEXT)
def test_a_planted_name_is_caught(words: tuple[str, ...]) -> None:
    for word in words:
        assert len(forbidden_text("x.md", f"see {word}thing")) >= 1


def test_pins_are_hashed() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        entries = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        assert entries, path
        for entry in entries:
            assert "==" in entry and "--hash=sha256:" in entry, f"{path.name}: {entry[:60]}"


def test_the_serving_pins_are_those_of_all_without_tensorflow() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
        return {line.rstrip(" \\") for line in lines if "==" in line and not line.startswith(" ")}

    everything = {pin.split(" ;")[0] for pin in pins("all.txt")}
    assert everything <= {pin.split(" ;")[0] for pin in pins("dev.txt")}
    serving = {pin.split(" ;")[0] for pin in pins("serve.txt")}
    assert serving < everything
    assert not {pin for pin in serving if pin.startswith((*_TENSORFLOW, "scipy"))}


# --- imports that must stay light


def test_importing_rayml_loads_neither_tensorflow_nor_ray() -> None:
    # `rayml.__main__` runs the program when it is imported.
    modules = [name for name, _ in _modules() if name.startswith("rayml") and name != "rayml.__main__"]
    assert loaded_by(modules, (*_TENSORFLOW, "ray")) == []


def test_importing_the_jobs_and_the_service_loads_no_tensorflow() -> None:
    assert loaded_by([name for name, _ in _modules() if not name.startswith("rayml")], _TENSORFLOW) == []


def test_a_heavy_import_is_caught() -> None:
    assert loaded_by(["string", "wave", "json.decoder"], ("json", "wave", "ray")) == [
        "wave loads wave",
        "json.decoder loads json",
    ]
