"""A headless Chromium and an app server in a process of its own, for browser tests, screenshots and measurements."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

HOUSE = Path(__file__).parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def find() -> str | None:
    """Return the path of this machine's Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def environment() -> dict[str, str]:
    """Return what a `rewind` process of a test sees: our code, one thread, no browser."""
    return {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "NO_BROWSER": "1"}


def rewind(*args: object, cwd: Path) -> None:
    """Run a verb to its end."""
    command = [sys.executable, "-m", "apps.cli", *map(str, args)]
    subprocess.run(command, cwd=cwd, env=environment(), check=True, stdout=subprocess.DEVNULL)


@contextmanager
def app(*traces: object):
    """Serve `traces`; give the address that was printed."""
    command = [sys.executable, "-m", "apps.cli", "app", *map(str, traces)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


@contextmanager
def browser():
    """Start Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find(), args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


class Page:
    """A page of the app; `complaints` are its errors and every request that left this machine."""

    def __init__(self, chromium, url: str, query: str = "", theme: str = "light", size: tuple[int, int] = (1360, 900)):
        """Open `url`, which has a token, with `query`, and wait until a step is shown."""
        self.page = chromium.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda e: self.complaints.append(f"error: {e}"))
        self.page.on("request", self._request)
        self.page.goto(f"{url}&{query}")
        self.shown()

    def _request(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            self.complaints.append(f"left this machine: {request.url}")

    def shown(self, step: int | None = None) -> None:
        """Wait until `step`, or any, is painted."""
        self.page.wait_for_selector("[data-shown]" if step is None else f"[data-shown='{step}']", timeout=20_000)

    def tab(self, name: str) -> None:
        """Go to a tab."""
        self.page.locator(f"[data-tab={name}]").click()
        self.page.wait_for_selector(f"[data-tab={name}].on")
