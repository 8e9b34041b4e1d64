"""Memory is given back, and nothing that was in it changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.hostile.pictures import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux only")

# In a process of its own: a mistake here ends it.
CODE = """
import threading, zlib
import numpy, openvino
from pathlib import Path
from PIL import Image
from rayml import memory

def resident_kb():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

def contents():
    found = {}
    with open("/proc/self/mem", "rb", buffering=0) as process:
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, rights, *_ = line.split()
            if line.endswith(("]", "rwxp")) or not "r" in rights or "/" not in line or "w" in rights:
                continue
            start, end = (int(part, 16) for part in addresses.split("-"))
            process.seek(start)
            found[start, end] = zlib.crc32(process.read(end - start))
    return found

before = contents()
held_kb = resident_kb()
memory.give_back_code()
assert resident_kb() < held_kb - 10_000, (held_kb, resident_kb())
after = contents()
there = before.keys() & after.keys()  # A library may have been loaded meanwhile.
assert len(there) > 20
assert not [area for area in there if before[area] != after[area]]

def load():
    import onnx, rayml.predictor, simplejpeg, grpc

loading = threading.Thread(target=load)
loading.start()
rounds = 0
while loading.is_alive():
    memory.give_back_code()
    rounds += 1
loading.join()
image = Image.effect_noise((64, 64), 30).resize((32, 32))
assert numpy.linalg.svd(numpy.asarray(image, numpy.float32))[1][0] > 0
openvino.Core()
print("whole", rounds)
"""


def test_libraries_are_let_go_and_come_back_unchanged() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    word, rounds = done.stdout.split()
    assert word == "whole" and int(rounds) >= 1
