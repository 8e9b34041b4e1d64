"""What a served answer costs beside the bare model's, and beside other servers with the same model and photos.

    python bench/serving.py BUNDLE PHOTOS [--only rayml,fastapi] [--rounds 15] [--seconds 3] [--cache FOLDER]
    python bench/serving.py BUNDLE PHOTOS --only rayml --rounds 3          # a first look, two minutes, only printed
    python bench/serving.py BUNDLE PHOTOS --precision bfloat16 --only rayml,fastapi,flask    # all in bfloat16

Claims: at 8 and 32 connections throughput is at least 0.97 of the bare model's (OpenVINO and Pillow in a loop on as
many threads as cores, no server; 0.90 in bfloat16, where the model takes less), processor time a request at most 1.08
of it, and more answers than every rival's; at one connection the median latency is at most the bare model's + 3 ms.

The bare model and the rivals decode with Pillow, as their guides do; rayml with simplejpeg, which takes less time. What
the server alone costs is told by another loop, `bare_rayml`: rayml's own path from bytes to probabilities.

A machine's speed drifts by more than these differences within minutes. So all servers are started once, and take turns
of a few seconds, many times, each turn in another order; who waits is stopped (SIGSTOP) with its whole process tree and
costs the others nothing. What is compared is always of the same round, and of these ratios the median counts. Each
server gets the same requests from `bench/load.py` in a process of its own, whose time the servers pay for and the bare
model does not. Processor time is that of the server's whole process tree.

Rivals live in `bench/rivals/`, each is installed into an environment of its own below --cache, once (FastAPI 0.3 GB,
those with TensorFlow 2 GB), with the versions that `bench/servers.py` and `bench/environments.py` name. Writes
bench/results/serving_BACKBONE.json, with _bfloat16 or _int8 behind its name where the model computes in that. Only a
whole run is written, others are printed: at least 5 rounds of at least 2 seconds, in float32 with all servers, in other
precisions, which Keras does not have, with at least rayml, fastapi and flask.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# This file has the package's name and lies first on the module path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from environments import BASE, install, installed_versions
from measure import machine, quartiles, spread, versions, write_result
from servers import (
    RIVALS,
    Bare,
    Server,
    bare_side,
    server_side,
    some_photos,
    surroundings_of,
)

from rayml.bundle import Bundle
from rayml.engines import PRECISIONS
from rayml.errors import RaymlError
from serving.processes import adopt_orphans, end_descendants

_CONNECTIONS = (1, 8, 32)
_COMPARED = ("per_s", "cpu_ms")
_ROUNDS, _SECONDS = 5, 2.0  # The least that is written.
# Of the bare model's throughput, by precision: the less the model takes, the more of it is the server's.
_LEAST = {"float32": 0.97, "bfloat16": 0.9, "int8": 0.9}

Round = dict[str, dict[int, dict[str, float]]]  # Figures by server and connections.


def main() -> int:
    """Measure in rounds and write what was measured; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path, help="a folder with JPEG files, at any depth; 64 of them are used")
    parser.add_argument("--only", default=",".join(RIVALS), help="servers, separated by commas")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "rayml-rivals")
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of the model, for all servers; by default the bundle's"
    )
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    unknown = set(names) - set(RIVALS)
    if unknown:
        parser.error(f"--only must name some of {', '.join(RIVALS)}. Received: {', '.join(sorted(unknown))}")
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2. Received: {arguments.rounds}")
    try:
        bundle = Bundle.open(arguments.bundle)
    except RaymlError as error:
        parser.error(error.message)
    record, precision = bundle.record, arguments.precision or bundle.precision
    if precision != "float32" and (keras := [name for name in names if name.endswith("_keras")]):
        parser.error(f"--only must name no Keras in {precision}. Received: {', '.join(keras)}")
    adopt_orphans()
    bins = {name: install(arguments.cache, RIVALS[name].packages) for name in names}
    bare_bin = install(arguments.cache, BASE)
    rounds: list[Round] = []
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rayml-bench-")))
        photos = some_photos(arguments.photos)
        surroundings = surroundings_of(arguments.bundle, precision)
        stack.callback(end_descendants, grace_s=10)
        loops = {"bare": ("bare.py", bare_bin), "bare_rayml": ("bare_rayml.py", Path(sys.executable).parent)}
        sides: dict[str, Bare | Server] = {
            name: stack.enter_context(bare_side(*loop, photos, work, surroundings)) for name, loop in loops.items()
        }
        for name in names:
            server = server_side(name, bins[name], arguments.bundle, photos, work, surroundings)
            sides[name] = stack.enter_context(server)
        for number in range(arguments.rounds):
            rounds.append({})
            for connections in _CONNECTIONS:
                for name in _order(list(sides), number):
                    found = sides[name].measure(connections, arguments.seconds)
                    rounds[-1].setdefault(name, {})[connections] = found
                    print(
                        f"round {number + 1}, {name}, {connections}: {json.dumps(found)}", file=sys.stderr, flush=True
                    )
    ratios = _ratios(rounds)
    claims = _claims(rounds, ratios, _LEAST[precision])
    suffix = "" if precision == "float32" else f"_{precision}"
    write_result(
        f"serving_{record.backbone_name}{suffix}",
        {
            "machine": machine(),
            "versions": versions("rayml", "ray", "openvino")
            | {n: installed_versions(bins[n]) for n in names if n != "rayml"},
            "bundle": f"{record.backbone_name} at {record.image_size_px} px{suffix.replace('_', ', ')}",
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "figures": _summary(rounds),
            "by_bare": ratios,
            "claims": claims,
        },
        whole=_whole(names, precision, arguments.rounds, arguments.seconds),
    )
    return 0 if all(claims.values()) else 1


def _whole(names: list[str], precision: str, rounds: int, seconds: float) -> bool:
    """Whether the published figures may be replaced by such a run."""
    needed = set(RIVALS) if precision == "float32" else {"rayml", "fastapi", "flask"}
    return needed <= set(names) and rounds >= _ROUNDS and seconds >= _SECONDS


def _order(names: list[str], number: int) -> list[str]:
    """Each time another one first, and every other time backwards: who follows whom does not stay the same."""
    first = number % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if number % 2 else turned


def _summary(rounds: list[Round]) -> dict[str, Any]:
    """The spread of each figure over the rounds, by server and connections."""
    return {
        name: {
            str(n): {key: spread([one[name][n][key] for one in rounds]) for key in rounds[0][name][n]}
            for n in _CONNECTIONS
        }
        for name in rounds[0]
    }


def _ratios(rounds: list[Round]) -> dict[str, Any]:
    """Median and quartiles of what each server's figures are of the bare model's in the same round."""
    return {
        name: {
            str(n): {key: quartiles([one[name][n][key] / one["bare"][n][key] for one in rounds]) for key in _COMPARED}
            for n in _CONNECTIONS
        }
        for name in rounds[0]
        if name != "bare"
    }


def _claims(rounds: list[Round], ratios: dict[str, Any], least: float) -> dict[str, bool]:
    claims: dict[str, bool] = {}
    if "rayml" not in ratios:
        return claims
    for n in (8, 32):
        share, cost = (ratios["rayml"][str(n)][key] for key in _COMPARED)
        claims[f"{n} connections: throughput {_shown(share)} of the bare model's, at least {least:.2f}"] = (
            share["median"] >= least
        )
        claims[f"{n} connections: processor time {_shown(cost)} of the bare model's, at most 1.08"] = (
            cost["median"] <= 1.08
        )
        for rival in sorted(set(ratios) - {"rayml", "bare_rayml"}):
            ahead = quartiles([one["rayml"][n]["per_s"] / one[rival][n]["per_s"] for one in rounds])
            claims[f"{n} connections: throughput {_shown(ahead)} of {rival}'s, more than 1"] = ahead["median"] > 1
    late = quartiles([one["rayml"][1]["p50_ms"] - one["bare"][1]["p50_ms"] for one in rounds])
    claims[f"1 connection: median {_shown(late)} ms later than the bare model, at most 3"] = late["median"] <= 3
    failures = sum(values["failures"] for one in rounds for values in one["rayml"].values())
    claims[f"{failures:g} failures, none"] = failures == 0
    return claims


def _shown(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} (quartiles {ratio['lower']:.3f} and {ratio['upper']:.3f})"


if __name__ == "__main__":
    sys.exit(main())
