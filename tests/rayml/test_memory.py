"""Memory is given back or held otherwise, and nothing that was in it changes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from rayml import memory
from tests.hostile.pictures import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing happens to memory elsewhere than on Linux")

# In a process of its own: a mistake here ends it.
_GIVE_BACK = """
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
    done = subprocess.run([sys.executable, "-c", _GIVE_BACK], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    word, rounds = done.stdout.split()
    assert word == "whole" and int(rounds) >= 1


# An area of which one half is used, and every second page of the other.
_HUGE = """
import ctypes, mmap, sys
from pathlib import Path
from rayml import memory

def held_kb():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return found["Rss"], found["AnonHugePages"]

settings = Path("/sys/kernel/mm/transparent_hugepage")
size = int((settings / "hpage_pmd_size").read_text())
area = mmap.mmap(-1, 16 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
full, sparse = range(8 * size), range(8 * size, 16 * size)
area[: 8 * size] = bytes(range(256)) * (8 * size // 256)
for at in sparse[:: 2 * mmap.PAGESIZE]:
    area[at] = 7
before = held_kb()
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
supported = ctypes.CDLL(None).madvise(ctypes.c_void_p(-(-address // size) * size), ctypes.c_size_t(size), 25) == 0
supported = supported and "[never]" not in (settings / "enabled").read_text()
memory.use_huge_pages()
after = held_kb()
assert area[: 8 * size] == bytes(range(256)) * (8 * size // 256)
assert all(area[at] == 7 for at in sparse[:: 2 * mmap.PAGESIZE])
assert not any(area[at] for at in sparse[mmap.PAGESIZE :: 2 * mmap.PAGESIZE])
print(supported, size // 1024, *before, *after)
"""


def test_what_is_in_use_moves_into_huge_pages_and_little_is_added() -> None:
    done = subprocess.run([sys.executable, "-c", _HUGE], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    supported, *numbers = done.stdout.split()
    if supported == "False":
        pytest.skip("this kernel does not move memory into huge pages when asked")
    size_kb, held_kb, huge_kb, held_after_kb, huge_after_kb = map(int, numbers)
    assert huge_after_kb >= huge_kb + 7 * size_kb  # One of the eight may lie across the edge.
    assert held_after_kb < held_kb + 2 * size_kb  # The sparse half alone would add four.


@pytest.mark.parametrize("setting", ["always madvise [never]", None])
def test_huge_pages_are_left_alone_where_they_are_not_wanted(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(memory, "_HUGE_PAGES", tmp_path)
    monkeypatch.setattr(memory, "_collapse", lambda *_: pytest.fail("memory was moved"))
    memory.use_huge_pages()


def test_a_mapped_file_is_let_go_of_by_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(memory, "_let_go", lambda start, end: given_back.append(end - start))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "weights").write_bytes(bytes(1 << 16))
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))  # No text: some file in the list may have such a name.
    odd.write_bytes(bytes(1 << 12))
    with ExitStack() as stack:
        for path in (tmp_path / "real" / "weights", odd):
            file = stack.enter_context(path.open("rb"))
            stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        memory.give_back_file(tmp_path / "link" / "weights")
    assert given_back == [1 << 16]
