"""The README's pictures, made by `make screenshots`: the demo's tabs, small files in docs/."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import chromium
from tests.tracer.live_run import LiveRun

DOCS = chromium.HOUSE / "docs"
SHOTS = {
    "overview": ("", "light", ""),
    "batch": ("step=20&feature=9", "light", ""),
    "features": ("step=250&feature=9", "light", ""),
    "forces": ("step=20&feature=9", "light", ""),
    "matrices": ("step=20&feature=9", "dark", "clustering"),
    "trajectories": ("step=250&feature=9", "light", ""),
    "metrics": ("step=250", "dark", ""),
    "replay": ("step=20", "light", "Re-execute"),
    "sql": ("step=20", "light", "Run"),
}
LARGEST = 150_000


def main(trace: str | None = None) -> None:
    """Record the demo (or take `trace`), open each tab, keep its picture."""
    with tempfile.TemporaryDirectory() as home:
        if trace is None:
            trace = str(Path(home) / "demo")
            script = chromium.HOUSE / "apps" / "demo_train.py"
            chromium.rewind("record", "--detail", "full", "--out", trace, script, cwd=Path(home))
        DOCS.mkdir(exist_ok=True)
        with chromium.app(trace) as url, chromium.browser() as browser:
            for tab, shot in SHOTS.items():
                shoot(browser, url, tab, *shot)
            shoot_live(browser, Path(home))
            shoot_parting(browser, trace, Path(home))


def shoot_parting(browser, trace: str, home: Path) -> None:
    """Keep the picture of a branch with half the learning rate beside its parent, and where the two part."""
    change = ("--at", 100, "--set", "optimizer.lr=0.5x", "--steps", 80)
    chromium.rewind("branch", trace, *change, "--out", home / "half-lr", cwd=home)
    with chromium.app(home / "half-lr", trace) as url:
        page = chromium.Page(browser, url, "run=half-lr&step=140&tab=metrics", "light", (1280, 1060))
        page.page.get_by_label("beside it").select_option(Path(trace).name)
        page.page.get_by_role("button", name="Where do they part?").click()
        page.page.get_by_text("parts from").wait_for(timeout=90_000)
        keep(page, "parting")


def shoot_live(browser, home: Path) -> None:
    """Keep the picture of a run that is paused and about to go on with another learning rate."""
    script = chromium.HOUSE / "apps" / "demo_train.py"
    with LiveRun(home / "train", "--pause-at", "180", script=script, arguments=["--steps", "400"]) as run:
        run.until_status("paused")
        with chromium.app(home / "train") as url:
            page = chromium.Page(browser, url, "feature=9&tab=features", "dark", (1280, 860))
            page.page.wait_for_selector("[data-status=paused]")
            page.page.locator("option", has_text="optimizer.lr").first.wait_for(state="attached")
            page.page.get_by_label("new value").fill("0.5x")
            page.page.get_by_role("button", name="change it from").click()
            page.page.get_by_text("from the next step").first.wait_for()
            keep(page, "live")


def shoot(browser, url: str, tab: str, *shot: str) -> None:
    """Keep the picture of one tab, in 256 colours where it would be large otherwise."""
    query, theme, press = shot
    page = chromium.Page(browser, url, f"{query}&tab={tab}", theme, (1280, 860))
    if press == "clustering":
        page.page.get_by_label("order by").select_option("cluster")
    elif press:
        page.page.get_by_role("button", name=press).first.click()
    if tab == "overview":
        page.page.get_by_text("features converging").wait_for(timeout=90_000)
    if tab == "replay":
        page.page.wait_for_selector("[data-verdict]", timeout=90_000)
    keep(page, tab)


def keep(page: chromium.Page, name: str) -> None:
    """Take the picture, small."""
    page.page.wait_for_timeout(2500)  # a picture has nothing to wait for: charts animate nothing, but load late
    path = DOCS / f"{name}.png"
    page.page.screenshot(path=path)
    page.page.close()
    picture = Image.open(path).convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size >= LARGEST:
        picture.quantize(256, kmeans=2).save(path, optimize=True)  # Else a chip's colour is lost among greys.
    print(f"{path.relative_to(chromium.HOUSE)}: {path.stat().st_size} bytes")
    assert path.stat().st_size < LARGEST, path


if __name__ == "__main__":
    main(*sys.argv[1:2])
