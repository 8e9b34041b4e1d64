"""Cores are counted as the container has them, not as the machine does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayml import cores
from rayml.engines.base import usable_threads

_V2, _V1 = "0::", "4:cpuset:/\n3:cpu,cpuacct:"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        (_V2 + "/", {"cpu.max": "200000 100000\n"}, 2),
        (_V2 + "/", {"cpu.max": "150000 100000\n"}, 2),  # Rounded up.
        (_V2 + "/", {"cpu.max": "1000 100000\n"}, 1),
        (_V2 + "/", {"cpu.max": "max 100000\n"}, 64),
        (_V2 + "/", {"cpu.max": "9900000 100000\n"}, 64),
        (_V2 + "/", {}, 64),
        (_V2 + "/a.slice/b", {"a.slice/cpu.max": "300000 100000\n", "a.slice/b/cpu.max": "max 100000\n"}, 3),
        (_V2 + "/named/as/outside", {"cpu.max": "200000 100000\n"}, 2),
        (_V1 + "/", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        (_V1 + "/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        (_V1 + "/a", {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "50000\n"}, 1),
        ("", {}, 64),
    ],
)
def test_a_container_s_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores, "_ROOT", tmp_path)
    for name, text in {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cores.usable_cores() == usable_threads(None) == expected


def test_a_system_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_ROOT", tmp_path)
    assert cores.usable_cores() == len(os.sched_getaffinity(0))
