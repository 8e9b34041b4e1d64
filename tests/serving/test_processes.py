"""Descendants are found, adopted and ended, however far down they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from serving.processes import descendants

# A parent that adopts, a child that ends at once, and a grandchild that would sleep for an hour.
_PROGRAM = """
import json, os, subprocess, sys
from serving import processes
processes.adopt_orphans()
sleep = "[sys.executable, '-c', 'import time; time.sleep(3600)']"
grandchild = f"import subprocess, sys; print(subprocess.Popen({sleep}, stdout=subprocess.DEVNULL).pid)"
orphan = int(subprocess.run([sys.executable, "-c", grandchild], stdout=subprocess.PIPE, check=True).stdout)
found = processes.descendants(os.getpid())
processes.end_descendants(grace_s=0.2)
print(json.dumps([orphan, sorted(found), sorted(processes.descendants(os.getpid()))]))
"""


def test_an_orphan_is_adopted_and_ended() -> None:
    output = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout
    orphan, found, left = json.loads(output)
    assert (found, left) == ([orphan], [])


def test_a_process_is_not_its_own_descendant() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = descendants(os.getpid())
        assert child.pid in found and os.getpid() not in found
        child.communicate(b"\n")
    assert child.pid not in descendants(os.getpid())
