"""What a bundle in int8 costs to serve, and what it gets right, beside the same search's bundle in float32.

    rayml tune DATA --backbone mobilenet_v2 --out RUN
    rayml tune DATA --backbone mobilenet_v2 --out RUN8 --precision int8
    python bench/int8.py RUN/best RUN8/best DATA/validation [--rounds 7] [--seconds 3]

Claims: at 8 and 32 connections the server answers at least 1.3 times as often, with less processor time a request, and
the accuracy on those photos, by which both were chosen, is not lower by more than one standard error of a share.

Both servers are started once and take turns, as in `bench/serving.py`. Writes bench/results/int8_BACKBONE.json
after at least 5 rounds of at least 2 seconds; fewer are only printed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# This file's folder has the package's name and lies first on the module path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import machine, quartiles, spread, versions, write_result
from servers import Server, server_side, some_photos, surroundings_of

from rayml.bundle import Bundle
from rayml.errors import RaymlError
from rayml.evaluation import evaluate
from rayml.predictor import Predictor
from rayml.progress import Progress
from serving.processes import adopt_orphans, end_descendants

_CONNECTIONS = (1, 8, 32)
_COMPARED = ("per_s", "cpu_ms", "p50_ms")
_LEAST = 1.3
_ROUNDS, _SECONDS = 5, 2.0  # The least that is written.

Rounds = list[dict[str, dict[int, dict[str, float]]]]  # Figures by precision and connections, one a round.


def main() -> int:
    """Measure in rounds and write what was measured; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("float32", type=Path, help="a bundle")
    parser.add_argument("int8", type=Path, help="a bundle of the same photos and grid, with --precision int8")
    parser.add_argument("photos", type=Path, help="a folder with a folder of photos for each class")
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2. Received: {arguments.rounds}")
    try:
        bundles = {name: Bundle.open(getattr(arguments, name)) for name in ("float32", "int8")}
        for name, bundle in bundles.items():
            if bundle.precision != name:
                parser.error(f"{name} must be a bundle in {name}. Received: one in {bundle.precision}")
        scored = {name: evaluate(Predictor(bundle), arguments.photos, Progress()) for name, bundle in bundles.items()}
    except RaymlError as error:
        parser.error(error.message)
    adopt_orphans()
    rounds: Rounds = []
    with ExitStack() as stack:
        stack.callback(end_descendants, grace_s=10)
        photos = some_photos(arguments.photos)
        sides: dict[str, Server] = {}
        for name, bundle in bundles.items():
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"rayml-bench-{name}-")))
            surroundings = surroundings_of(bundle.path, name)
            server = server_side("rayml", Path(sys.executable).parent, bundle.path, photos, work, surroundings)
            sides[name] = stack.enter_context(server)
        for number in range(arguments.rounds):
            rounds.append({name: {} for name in sides})
            for connections in _CONNECTIONS:
                for name in list(sides)[:: -1 if number % 2 else 1]:
                    found = rounds[-1][name][connections] = sides[name].measure(connections, arguments.seconds)
                    print(
                        f"round {number + 1}, {name}, {connections}: {json.dumps(found)}", file=sys.stderr, flush=True
                    )
    ratios = {
        str(n): {key: quartiles([one["int8"][n][key] / one["float32"][n][key] for one in rounds]) for key in _COMPARED}
        for n in _CONNECTIONS
    }
    accuracy = {name: float(figures["accuracy"]) for name, figures in scored.items()}
    count = int(scored["int8"]["n"])
    claims = _claims(ratios, accuracy, count)
    record = bundles["int8"].record
    write_result(
        f"int8_{record.backbone_name}",
        {
            "machine": machine(),
            "versions": versions("rayml", "ray", "openvino", "onnxruntime"),
            "bundle": f"{record.backbone_name} at {record.image_size_px} px",
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "photos": count,
            "accuracy": accuracy,
            "loss": {name: figures["loss"] for name, figures in scored.items()},
            "graph_bytes": {name: (bundle.path / "model.onnx").stat().st_size for name, bundle in bundles.items()},
            "figures": {
                name: {
                    str(n): {key: spread([one[name][n][key] for one in rounds]) for key in _COMPARED}
                    for n in _CONNECTIONS
                }
                for name in sides
            },
            "by_float32": ratios,
            "claims": claims,
        },
        whole=arguments.rounds >= _ROUNDS and arguments.seconds >= _SECONDS,
    )
    return 0 if all(claims.values()) else 1


def _claims(ratios: dict[str, Any], accuracy: dict[str, float], count: int) -> dict[str, bool]:
    claims = {}
    for n in ("8", "32"):
        times, cost = ratios[n]["per_s"]["median"], ratios[n]["cpu_ms"]["median"]
        claims[f"{n} connections: {times:.2f} times the answers, at least {_LEAST}"] = times >= _LEAST
        claims[f"{n} connections: {cost:.2f} of the processor time a request, less than 1"] = cost < 1
    share = accuracy["float32"]
    error = math.sqrt(share * (1 - share) / count)
    lost = share - accuracy["int8"]
    claims[f"accuracy lower by {lost:.4f}, at most {error:.4f}, a standard error for {count} photos"] = lost <= error
    return claims


if __name__ == "__main__":
    sys.exit(main())
