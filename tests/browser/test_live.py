"""The app on runs that go on: real trainers, a real server, a real browser, each of them killed once. # S2.1 S2.2 S4.1"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests.browser import chromium
from tests.tracer.live_run import LiveRun
from tracer import open_trace

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium on this machine"),
]

PROGRAM = """
import pathlib, sys, time, torch
flag = pathlib.Path(__file__).with_suffix(".flag")
torch.manual_seed(0)
model = torch.nn.Linear(64, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
data = torch.utils.data.TensorDataset(torch.rand(400, 1, 8, 8), torch.rand(400, 8))
for epoch in range(10_000):
    for x, y in torch.utils.data.DataLoader(data, batch_size=4):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x.flatten(1)), y)
        loss.backward()
        optimizer.step()
        time.sleep(0.03)
        word = flag.read_text() if flag.exists() else ""
        if word == "fail":
            raise ValueError("told to fail")
        if word == "end":
            sys.exit(0)
"""
LONG = 90_000


class Slow(LiveRun):
    """A run of 30 ms a step that goes on until it is told to end, or to fail."""

    def __init__(self, path, *options):
        script = path.with_name(f"{path.name}.py")
        script.write_text(PROGRAM)
        self.flag = script.with_suffix(".flag")
        super().__init__(path, *options, script=script)

    @property
    def steps(self):
        return self.status()["current_step"]

    def told(self, word):
        self.flag.write_text(word)


class App:
    """A server in a process of its own, that can be killed and started again."""

    def __init__(self, home, *traces):
        self.environment = {**chromium.environment(), "XDG_STATE_HOME": str(home / "state")}
        self.command = [sys.executable, "-m", "apps.cli", "app", *map(str, traces)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def runs(home):
    """Three runs that go on."""
    (home / "runs").mkdir()
    with ExitStack() as stack:
        made = {name: stack.enter_context(Slow(home / "runs" / name)) for name in ("one", "two", "three")}
        for run in made.values():
            run.until_status("running")
        yield made


@pytest.fixture(scope="module")
def app(home, runs):
    made = App(home, home / "runs")
    yield made
    made.kill()


@pytest.fixture(scope="module")
def chrome():
    with chromium.browser() as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def let_go(app, chrome):
    """A browser that held the run `three` and was closed: what becomes of the run shows after some seconds."""
    other = chrome.browser_type.launch(executable_path=chromium.find(), args=chromium.FLAGS)
    held = Page(other, app.url, "run=three")
    held.page.keyboard.press("p")
    held.badge("paused")
    other.close()


class Page(chromium.Page):
    """A page of the app on a live run."""

    def until(self, condition, argument=None):
        self.page.wait_for_function(condition, arg=argument, timeout=LONG)

    def badge(self, word):
        self.page.wait_for_selector(f"[data-status={word}]", timeout=LONG)

    def number(self, name):
        return int(self.page.locator(f"[data-{name}]").first.get_attribute(f"data-{name}"))

    def button(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()


AT_LEAST = """([name, least]) => { const there = (root) => [...root.querySelectorAll("*")].some((e) =>
  (e.dataset && name in e.dataset && Number(e.dataset[name]) >= least) || (e.shadowRoot && there(e.shadowRoot)));
  return there(document); }"""
POINTS = """() => { for (const doc of Bokeh.documents) for (const model of doc._all_models.values()) {
  const data = model.data; if (model.type === "ColumnDataSource" && data && (data.get ? data.get("smooth") : data.smooth))
    return Array.from(data.get ? data.get("step") : data.step); } return null; }"""
ALL_POINTS = "(n) => { const points = (" + POINTS + ")(); return points && points.length >= n; }"


def test_following(app, runs, chrome):  # S0.2 S2.2
    run = runs["one"]
    page = Page(chrome, app.url, "run=one&tab=metrics")
    page.badge("live")
    assert "step=live" in page.page.url
    begun = page.number("shown")
    page.until(AT_LEAST, ["shown", begun + 10])
    page.until(ALL_POINTS, begun + 10)
    page.page.keyboard.press("Shift+ArrowLeft")
    page.page.wait_for_url(re.compile(r"step=\d+"))
    left = int(re.search(r"step=(\d+)", page.page.url)[1])
    page.shown(left)
    page.until(AT_LEAST, ["last", left + 20])
    assert page.number("shown") == left, "who goes back stays where he is"
    two = Page(chrome, app.url, "run=one&tab=metrics&step=3")
    two.shown(3)
    page.page.keyboard.press("l")
    page.until(AT_LEAST, ["shown", left + 20])
    page.page.reload()
    page.badge("live")
    page.until(AT_LEAST, ["shown", left + 30])
    run.told("end")
    for one in (page, two):
        one.badge("finished")
    with open_trace(run.path) as trace:
        count = trace.steps
        assert trace.recorded_steps.runs == ((0, count - 1),)
    page.shown(count - 1)
    for one in (page, two):
        one.until(ALL_POINTS, count)
        assert one.page.evaluate(POINTS) == list(range(count))
    assert two.number("shown") == 3
    assert page.page.locator(".live-button:visible").count() == 0
    assert page.complaints + two.complaints == []
    page.page.close()
    two.page.close()


def test_buttons_and_what_the_pause_holds(app, runs, chrome):  # S4.1
    run = runs["two"]
    page = Page(chrome, app.url, "run=two&tab=forces")
    page.badge("live")
    page.page.keyboard.press("p")
    page.badge("paused")
    page.page.get_by_text("goes on when its last page is closed").wait_for()
    at = run.steps
    page.shown(at - 1)
    page.page.get_by_label("how many steps").fill("3")
    page.button("let the paused run make steps (n)")
    page.shown(at + 2)
    assert run.steps == at + 3
    page.page.locator("option", has_text="optimizer.lr").first.wait_for(state="attached")
    page.page.get_by_label("new value").fill("0.5x")
    page.button("change it from the next step on; 0.5x halves it")
    page.page.get_by_text("optimizer.lr → 0.5x from the next step").wait_for()
    page.page.keyboard.press("n")
    page.until(AT_LEAST, ["shown", at + 5])
    page.page.get_by_label("new value").fill("fast")
    page.button("change it from the next step on; 0.5x halves it")
    page.page.locator(".problem", has_text="no value").wait_for()
    page.button("pause or resume the run (p)")
    page.badge("live")
    page.page.keyboard.press("p")
    page.badge("paused")
    page.page.get_by_role("button", name="hold the run by hand").click()
    page.page.get_by_text("Paused by hand").wait_for()
    page.button("end the run")
    page.button("End the run")
    page.badge("terminated")
    assert page.complaints == []
    page.page.close()
    with open_trace(run.path) as trace:
        assert trace.recorded_steps.runs == ((0, trace.steps - 1),)
        rates = [lr for (lr,) in trace.sql("select distinct lr from steps order by 1").fetchall()]
        assert rates == [0.01, 0.02]
        ((changed,),) = trace.sql("select count(*) from events where detail like '%0.5x%'").fetchall()
        assert changed == 1


def test_each_of_the_three_is_killed(app, runs, chrome, home):
    run = runs["three"]
    run.until_status("running")  # The browser is gone: it held the run, and nobody else did.
    page = Page(chrome, app.url, "run=three&tab=metrics")
    page.page.keyboard.press("p")
    page.badge("paused")
    app.kill()
    page.badge("connecting")
    run.until_status("running")  # So did the server.
    app.start()
    page.badge("live")
    assert "step=live" in page.page.url
    seen = page.number("shown")
    page.until(AT_LEAST, ["shown", seen + 5])
    run.process.send_signal(signal.SIGKILL)
    page.badge("crashed")
    with open_trace(run.path) as trace:
        count = trace.steps
        assert trace.recorded_steps.runs == ((0, count - 1),)
    page.until(ALL_POINTS, count)
    assert page.page.evaluate(POINTS) == list(range(count))
    page.page.close()


def test_a_run_that_fails_says_so(home, chrome):
    path = home / "failing"
    with Slow(path, "--pause-at", "2") as run:
        run.until_status("paused")
        served = App(home, path)
        page = Page(chrome, served.url)
        page.badge("paused")
        page.page.get_by_text("Paused by hand before step 2").wait_for()
        run.told("fail")
        page.page.keyboard.press("p")
        page.badge("failed")
        assert page.complaints == []
        page.page.close()
        served.kill()
