"""The picture of a report that the documentation shows.

    python scripts/report_picture.py RUN/report.html docs/images/report.png

Needs Chromium (Debian's package chromium). The one in docs/ is of `rayml demo`'s run on the built-in sample.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

WIDTH_PX, HEIGHT_PX = 1100, 1480  # The winner, the grid and the learning curves.
MAX_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def photograph(page: Path, target: Path) -> int:
    """Write a picture of the top of the page.

    Returns:
        Its size in bytes.

    Raises:
        SystemExit: no Chromium, or the picture is larger than `MAX_BYTES`.
    """
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        raise SystemExit(f"one of {', '.join(BROWSERS)} was expected. Received: none of them on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "page.png"
        subprocess.run(
            [
                browser,
                "--headless",
                "--hide-scrollbars",
                "--disable-dev-shm-usage",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH_PX},{HEIGHT_PX}",
                f"--screenshot={raw}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(raw) as picture:
            picture.convert("RGB").save(target, "PNG", optimize=True)
    size = target.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{target} must have at most {MAX_BYTES} bytes. Received: {size}")
    return size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("page", type=Path, help="a report.html")
    parser.add_argument("target", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    print(f"{arguments.target}: {photograph(arguments.page, arguments.target) / 1000:.0f} kB")
