"""Every dashboard in a real browser, over a gateway that `mtgr dashboards` watches.

    python -m tests.observability.screenshots [URL [DIRECTORY]]

Writes a picture of each, and fails where a panel has no data (a GPU's excepted).
"""

import html
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--window-size=1600,1500", "--virtual-time-budget=4000"),
)
PANEL = re.compile(r'<section class="panel"[^>]*data-series="(\d+)"[^>]*><h2[^>]*>([^<]*)')


def main(url: str, directory: Path) -> int:
    """Number of panels without data."""
    directory.mkdir(parents=True, exist_ok=True)
    empty = 0
    for board in httpx.get(f"{url}/boards").json():
        page = f"{url}/?board={board['uid']}&minutes=3"
        with tempfile.TemporaryDirectory() as profile:
            browser = [*CHROMIUM, f"--user-data-dir={profile}"]
            picture = directory / f"{board['uid']}.png"
            shot = [*browser, f"--screenshot={picture}", page]
            subprocess.run(shot, check=True, capture_output=True)
            dump = subprocess.run([*browser, "--dump-dom", page], check=True, capture_output=True)
        panels = [(html.unescape(name), int(n)) for n, name in PANEL.findall(dump.stdout.decode())]
        without = [name for name, series in panels if not series]
        empty += len(without)
        print(f"{picture}: {len(panels)} panels, without data: {without}")  # noqa: T201 - its answer
    return empty


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "http://127.0.0.1:3000", "var/dashboards"]
    sys.exit(
        bool(main(arguments[0], Path(arguments[1] if len(sys.argv) > 2 else "var/dashboards")))
    )
