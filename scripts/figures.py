"""The figures of README.md and docs/measured.md, out of bench/results/*.json.

    python -m scripts.figures             # after a benchmark has written new results
    python -m scripts.figures --check     # ends with 1 where a page is not up to date

They stand between two comments: the few that matter most in README.md, all of them in docs/measured.md. Every figure
comes from a file there, with its machine and day; a benchmark without results has no table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: python -m scripts.figures -->", "<!-- end of figures -->"
NAMES = {
    "bare": "the bare model in a loop, no server: OpenVINO, Pillow",
    "bare_rayml": "rayml's own predictor in a loop, no server",
    "rayml": "**rayml serve**",
    "fastapi": "FastAPI, OpenVINO",
    "flask": "Flask and gunicorn, OpenVINO",
    "bentoml": "BentoML, OpenVINO",
    "litserve": "LitServe, OpenVINO",
    "mlserver": "MLServer, OpenVINO",
    "ray_keras": "Ray Serve, Keras `predict`",
    "flask_keras": "Flask and gunicorn, Keras `predict`",
}
SERVED = re.compile(r"serving_(?!start)\w+")
LOWER = ("_bfloat16", "_int8")
Result = dict[str, Any]


def median(value: Result) -> float:
    """Of a spread, as bench/measure.py writes it."""
    return float(value["median"])


def number(value: float) -> str:
    """With as many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def counted(rounds: int) -> str:
    """In words."""
    return f"{rounds} round{'s' if rounds > 1 else ''}"


def where(result: Result, name: str) -> str:
    """On what machine and when, and in which file."""
    machine = result["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, Python "
        f"{machine['python']}, {day(result)}; `bench/results/{name}.json`"
    )


def day(result: Result) -> str:
    """When it was measured."""
    return str(result["machine"].get("date", "no date noted"))


def tune(result: Result) -> str:
    """The command of bench/grid.py."""
    return f"`rayml tune --scheduler {result['scheduler']}`"


def factor(network: Result) -> str:
    """How many times as long the lesson's way takes; Keras' epochs differ by more than half from round to round."""
    times = network["lesson_by_ours"]
    return f"**{number(times['median'])} times as long** ({number(times['min'])} to {number(times['max'])})"


def grid(result: Result) -> Iterator[str]:
    """bench/grid.py: what a search costs, beside the lesson's way."""
    epochs = result["cells"] * result["epochs"]
    each = f"{result['epochs']} epochs"
    for name, one in result["backbones"].items():
        rounds = counted(one["rounds"])
        yield f"| {name} at {one['image_size']} px, {result['photos']:,} photos, {rounds} | seconds |"
        yield "|---|---|"
        first, second = one["first_run_s"], one["second_run_s"]
        yield f"| one pass over the photos (features) | {number(median(first['features']))} |"
        yield (
            f"| the search on the features, {result['cells']} trials of {each} | {number(median(first['search']))} |"
        )
        yield f"| {tune(result)} from nothing, everything included | {number(median(first['command']))} |"
        share = f"{median(one['second_by_first']):.2f} of the first"
        yield f"| the same again, features in the cache | {number(median(second['command']))} ({share}) |"
        yield (
            "| one epoch of one trial the lesson's way (`make_model(...).fit`) "
            f"| {number(median(one['lesson_epoch_s']))} |"
        )
        yield f"| **{epochs} such epochs, beside {tune(result)} from nothing** | {factor(one)} |"
        yield ""
    yield from _missed(result["claims"])
    yield f"`python bench/grid.py`: {where(result, 'grid')}. The factor is computed from one epoch, not run."


def search(result: Result) -> Iterator[str]:
    """bench/search.py: what a search costs beyond its arithmetic, and beside other ways."""
    rows = {
        "bare 12": "the arithmetic alone, in a plain loop",
        "rayml 12": "**rayml's search**, with history, ledger and checkpoints",
        "ray_tune": "Ray Tune with plain `model.fit`",
        "keras_tuner": "KerasTuner's GridSearch",
    }
    yield f"| 12 heads x {result['epochs']} epochs on cached features, {counted(result['rounds'])} | seconds |"
    yield "|---|---|"
    for name, what in rows.items():
        if name in result:
            yield f"| {what} | {number(median(result[name]['seconds']))} |"
    yield ""
    many = [cells for cells in (120, 1000) if f"overhead_s_a_trial_{cells}" in result]
    for cells in many:
        beyond = median(result[f"overhead_s_a_trial_{cells}"])
        more = "more" if beyond > 0 else "less"
        yield f"A search of {cells:,} cells takes {abs(beyond):.3f} s a trial {more} than its arithmetic in that loop."
    if many:
        yield (
            "The loop trains one head after the other. The search trains as many side by side as there are cores, and "
            "what it gains by that is taken off what it costs."
        )
    yield ""
    yield from _missed(result["claims"])
    yield (
        "Ray's start is not counted; TensorFlow's import is in rayml's and Ray Tune's figures, whose workers load it. "
        f"`python bench/search.py`: {where(result, 'search')}."
    )


def _missed(claims: dict[str, bool]) -> Iterator[str]:
    """What a benchmark claims and did not find."""
    if missed := [claim for claim, holds in claims.items() if not holds]:
        yield "Claims that did not hold, each with what was measured and what it asks for:"
        yield ""
        yield from (f"- {claim}" for claim in missed)
        yield ""


def feature_pass(result: Result) -> Iterator[str]:
    """bench/feature_pass.py: our actors beside Ray Data."""
    sides, ratio = result["sides"], median(result["ray_data_by_actors"])
    yield (
        f"The pass over {result['photos']:,} photos with {result['backbone']} at {result['image_size']} px takes "
        f"{number(median(sides['actors']['seconds']))} s by rayml's actors and "
        f"{number(median(sides['ray_data']['seconds']))} s as a pipeline of Ray Data (a factor of {ratio:.2f}, "
        f"{result['rounds']} rounds; {where(result, 'feature_pass')})."
    )
    yield ""
    yield from _missed(result["claims"])


def serving(result: Result, name: str) -> Iterator[str]:
    """bench/serving.py: throughput and cost beside others."""
    figures, by_bare = result["figures"], result["by_bare"]
    counts = list(next(iter(figures.values())))
    yield (
        f"| {result['bundle']}, {result['rounds']} rounds of {result['seconds']:g} s | "
        + " | ".join(
            [f"requests/s at {n}" for n in counts]
            + [f"of the bare model's at {counts[1]}", f"p99 at {counts[-1]}, ms"]
            + [f"processor ms a request at {counts[1]}"]
        )
        + " |"
    )
    yield "|---" * (len(counts) + 4) + "|"
    for server in sorted(figures, key=lambda one: list(NAMES).index(one)):
        one = figures[server]
        cells = [number(median(one[n]["per_s"])) for n in counts]
        share = by_bare[server][counts[1]]["per_s"] if server in by_bare else None
        cells.append(f"{share['median']:.2f} ({share['lower']:.2f} to {share['upper']:.2f})" if share else "1")
        cells += [number(median(one[counts[-1]]["p99_ms"])), number(median(one[counts[1]]["cpu_ms"]))]
        yield f"| {NAMES[server]} | " + " | ".join(cells) + " |"
    yield ""
    yield from _missed(result["claims"])
    yield f"`python bench/serving.py BUNDLE PHOTOS`, the same photos for all: {where(result, name)}."


def int8(result: Result, name: str) -> Iterator[str]:
    """bench/int8.py: the same search's bundle in float32 and in int8."""
    figures, times = result["figures"], result["by_float32"]
    counts = list(times)
    yield (
        f"| {result['bundle']}, {counted(result['rounds'])} of {result['seconds']:g} s | "
        + " | ".join(f"requests/s at {n}" for n in counts)
        + f" | processor ms a request at {counts[1]} | accuracy on {result['photos']:,} photos | graph |"
    )
    yield "|---" * (len(counts) + 4) + "|"
    for precision, one in figures.items():
        cells = [number(median(one[n]["per_s"])) for n in counts] + [number(median(one[counts[1]]["cpu_ms"]))]
        cells += [f"{result['accuracy'][precision]:.4f}", f"{result['graph_bytes'][precision] / 1e6:.1f} MB"]
        yield f"| {precision} | " + " | ".join(cells) + " |"
    cells = [f"{median(times[n]['per_s']):.2f}" for n in counts] + [f"{median(times[counts[1]]['cpu_ms']):.2f}"]
    yield "| int8, of float32's | " + " | ".join(cells) + " | | |"
    yield ""
    yield from _missed(result["claims"])
    yield f"`python bench/int8.py RUN/best RUN8/best PHOTOS`: {where(result, name)}."


def start(result: Result, name: str) -> Iterator[str]:
    """bench/serving_start.py: how soon and how large."""
    replica = next(one for one in result["processes"] if one["name"].startswith("ServeReplica"))
    tensorflow = f"TensorFlow in {', '.join(result['with_tensorflow'])}" if result["with_tensorflow"] else "none"
    yield (
        f"| {result['bundle']} | {number(result['server_ready_s'])} s | {number(result['replica_ready_s'])} s "
        f"| {number(replica['rss_mb'])} MB | {tensorflow} | {day(result)}, `{name}.json` |"
    )


def scale(result: Result) -> Iterator[str]:
    """bench/scale.py: the bookkeeping as the data grows."""
    entries = {int(count): one for count, one in result["entries"].items()}
    largest = max(entries)
    memory = median(entries[largest]["open"]["private_mib"])
    yield (
        f"At {largest:,} photos the driver of a search holds {number(memory)} MiB for the manifest and the index of "
        f"features, {number(memory * 2**20 / largest / 1000)} kB a photo ({where(result, 'scale')})."
    )
    yield ""
    yield from _missed(result["claims"])


TABLES: dict[str, Callable[[Result], Iterator[str]]] = {
    "grid": grid,
    "search": search,
    "feature_pass": feature_pass,
}


def tables(found: dict[str, Result]) -> Iterator[str]:
    """Everything that was measured."""
    yield from ("\n".join(table(found[name])).rstrip() for name, table in TABLES.items() if name in found)
    served = ["\n".join(serving(one, name)) for name, one in found.items() if SERVED.fullmatch(name)]
    if served:
        yield (
            "Serving. Medians of the rounds; shares are taken within each round, in brackets are their quartiles over "
            "all rounds. JPEG is decoded by simplejpeg in rayml and by Pillow in all others, as their guides do: the "
            "second line shows what that gains, its distance to the third what the server costs."
        )
    yield from served
    quantized = {name: one for name, one in found.items() if name.startswith("int8_")}
    if quantized:
        yield "The same search and server with `--precision int8` and without; medians, ratios within each round."
    yield from ("\n".join(int8(one, name)) for name, one in quantized.items())
    starts = {name: one for name, one in found.items() if name.startswith("serving_start")}
    if starts:
        head = (
            "| `rayml serve` | first right answer after | replica ready, from its process's start "
            "| memory of the replica | TensorFlow | |\n|---|---|---|---|---|---|"
        )
        yield "\n".join([head, *(row for name, one in starts.items() for row in start(one, name))])
        claims = {f"{one['bundle']}: {c}": holds for one in starts.values() for c, holds in one["claims"].items()}
        if missed := "\n".join(_missed(claims)).rstrip():
            yield missed
    if "scale" in found:
        yield "\n".join(scale(found["scale"])).rstrip()


def summary(found: dict[str, Result]) -> Iterator[str]:
    """What a reader of the README asks first: what a search takes, what serving takes, and whether all is so."""
    if "grid" in found:
        yield "\n".join(_searches(found["grid"]))
    served = {name: one for name, one in found.items() if SERVED.fullmatch(name) and not name.endswith(LOWER)}
    if served:
        yield "\n".join(_servers(list(served.values())))
    for name, one in found.items():
        if name.startswith("serving_start"):
            replica = next(process for process in one["processes"] if process["name"].startswith("ServeReplica"))
            yield (
                f"A replica with {one['bundle']} is ready {number(one['replica_ready_s'])} s after its start and holds "
                f"{number(replica['rss_mb'])} MB."
            )
    for name, one in found.items():
        if name.startswith("int8_mobilenet"):  # Xception's weights are random: no accuracy to speak of.
            times, accuracy = one["by_float32"]["8"], one["accuracy"]
            yield (
                f"With `rayml tune --precision int8` the server answers {median(times['per_s']):.2f} times as often at "
                f"{median(times['cpu_ms']):.2f} of the processor time ({one['bundle']}, 8 connections); validation "
                f"accuracy {accuracy['int8']:.3f}, in float32 {accuracy['float32']:.3f}."
            )
    claims = [holds for one in found.values() for holds in one.get("claims", {}).values()]
    yield (
        f"The benchmarks make {len(claims)} claims, of which {claims.count(False)} did not hold where they were run: "
        "[docs/measured.md](docs/measured.md) names them, the machines, and everything else that was measured."
    )


def _searches(result: Result) -> Iterator[str]:
    networks = result["backbones"]
    epochs = result["cells"] * result["epochs"]
    rows: dict[str, Callable[[Result], str]] = {
        "one pass over the photos": lambda one: f"{number(median(one['first_run_s']['features']))} s",
        f"{tune(result)} from nothing, everything included": lambda one: (
            f"{number(median(one['first_run_s']['command']))} s"
        ),
        "the same again, features in the cache": lambda one: f"{number(median(one['second_run_s']['command']))} s",
        "one epoch of one trial the lesson's way": lambda one: f"{number(median(one['lesson_epoch_s']))} s",
        f"**{epochs} such epochs, beside {tune(result)} from nothing**": factor,
    }
    titles = " | ".join(f"{name} at {one['image_size']} px" for name, one in networks.items())
    cores = result["machine"]["cores"]
    yield f"| {result['cells']} trials on {result['photos']:,} photos, {cores} cores | {titles} |"
    yield "|---" * (len(networks) + 1) + "|"
    for what, cell in rows.items():
        yield f"| {what} | " + " | ".join(cell(one) for one in networks.values()) + " |"


def _servers(results: list[Result]) -> Iterator[str]:
    titles = [title for one in results for title in (f"{one['bundle']}: requests/s", "of the bare model's")]
    yield f"| photos over HTTP, 8 connections, {results[0]['machine']['cores']} cores | " + " | ".join(titles) + " |"
    yield "|---" * (len(titles) + 1) + "|"
    for server, what in NAMES.items():
        if any(server in one["figures"] for one in results):
            cells = [cell for one in results for cell in _at_eight(one, server)]
            yield f"| {what} | " + " | ".join(cells) + " |"


def _at_eight(result: Result, server: str) -> tuple[str, str]:
    if server not in result["figures"]:
        return "", ""
    share = result["by_bare"][server]["8"]["per_s"]["median"] if server in result["by_bare"] else 1
    return number(median(result["figures"][server]["8"]["per_s"])), f"{share:.2f}"


PAGES: dict[str, Callable[[dict[str, Result]], Iterator[str]]] = {"README.md": summary, "docs/measured.md": tables}


def filled(text: str, page: str, results: Path = ROOT / "bench" / "results") -> str:
    """A page's text with the figures of today between its comments.

    Arguments:
        page: in `PAGES`.
        results: the folder of the benchmarks' results.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{BEGIN} and {END} were expected in {page}. Received: a text without them")
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    block = "\n\n".join(PAGES[page](found))
    return f"{head}{BEGIN}\n\n{block}\n\n{END}{tail}"


def main() -> int:
    """Renew the pages, or say whether that would change them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args()
    stale = False
    for page in PAGES:
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new = filled(old, page)
        stale |= new != old
        if not arguments.check:
            path.write_text(new, encoding="utf-8")
    return int(arguments.check and stale)


if __name__ == "__main__":
    sys.exit(main())
