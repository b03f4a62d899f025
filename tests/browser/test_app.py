"""The app in a real browser: every view, every key, deep links, two pages at once, traces that lack things. # C2"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from xml.etree import ElementTree

import pytest
from PIL import Image

from apps.views import figures
from tests.browser import chromium
from tests.tracer.synthetic import make_trace

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium on this machine"),
]

STEPS = 130
PLAIN = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x in torch.utils.data.DataLoader(torch.rand(40, 4), batch_size=4):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
"""
# A dict of token ids and words, bfloat16 weights and captures, a loss that is never finite.
TOKENS = """
import torch, tracer
torch.manual_seed(0)
table = torch.nn.Embedding(50, 6, dtype=torch.bfloat16)
optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
data = [{"input_ids": torch.randint(0, 50, (7,)), "text": f"a sentence, number {i}"} for i in range(24)]
for batch in torch.utils.data.DataLoader(data, batch_size=4):
    optimizer.zero_grad()
    out = table(batch["input_ids"])
    tracer.capture("table/spread", out.detach().amax((0, 1)))
    tracer.log(**{"val/score": float("nan"), "train/score": float("inf")})
    (out.sum() * float("nan")).backward()
    optimizer.step()
"""
WALK = """const all = [], walk = (root) => {
  for (const node of root.querySelectorAll("*")) { all.push(node); if (node.shadowRoot) walk(node.shadowRoot); }
}; walk(document);"""
# Words whose contrast with what lies behind them is under 4.5, or 3 where they are large (WCAG 2.1, 1.4.3).
FAINT = f"""() => {{ {WALK}
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const above = (node) => node.assignedSlot || node.parentElement || (node.getRootNode().host ?? null);
  const behind = (node) => {{
    for (let at = node; at; at = above(at)) {{
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      if (a > 0.95) return [r, g, b];
    }}
    return [255, 255, 255];
  }};
  const light = (rgb) => {{
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }};
  const faint = [];
  for (const node of all) {{
    const text = [...node.childNodes].filter((c) => c.nodeType === 3).map((c) => c.textContent.trim()).join("");
    if (!text || !node.checkVisibility() || node.disabled || /^(STYLE|SCRIPT|TITLE|OPTION)$/.test(node.tagName)) continue;
    const style = getComputedStyle(node), size = parseFloat(style.fontSize), bold = style.fontWeight >= 700;
    const [x, y] = [light(parse(style.color).slice(0, 3)), light(behind(node))].sort((p, q) => q - p);
    const large = size >= 24 || (bold && size >= 18.66) || !/[\\p{{L}}\\p{{N}}]/u.test(text);  // or an icon
    const ratio = (x + 0.05) / (y + 0.05), wanted = large ? 3 : 4.5;
    if (ratio < wanted) faint.push(`${{text.slice(0, 40)}}: ${{ratio.toFixed(2)}}`);
  }}
  return faint;
}}"""
# What can be read below the tabs.
SAID = f"""{WALK}
  const tabs = all.find((n) => n.role === "tablist"), under = tabs ? tabs.getBoundingClientRect().bottom : 0;
  const words = all.filter((n) => n.checkVisibility() && n.getBoundingClientRect().top >= under)
    .flatMap((n) => [...n.childNodes].filter((c) => c.nodeType === 3).map((c) => c.textContent.trim())).join(" ");"""
# Every visible control gets a number; `FOCUSED` is that of the one with the focus.
CONTROLS = f"""() => {{ {WALK}
  const seen = all.filter((n) => /^(BUTTON|SELECT|INPUT|TEXTAREA)$|^CANVAS$/.test(n.tagName) && n.checkVisibility()
    && !n.disabled && (n.tagName !== "CANVAS" || n.tabIndex >= 0) && !n.closest("dialog"));
  seen.forEach((n, i) => {{ n.dataset.control = i; }});
  return seen.map((n) => n.dataset.control);
}}"""
FOCUSED = """() => {
  let at = document.activeElement;
  while (at && at.shadowRoot && at.shadowRoot.activeElement) at = at.shadowRoot.activeElement;
  return at ? at.dataset.control : null;
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    home = tmp_path_factory.mktemp("browser")
    script = chromium.HOUSE / "apps" / "demo_train.py"
    chromium.rewind("record", "--detail", "full", "--out", "demo", script, "--steps", STEPS, cwd=home)
    (home / "plain.py").write_text(PLAIN)
    chromium.rewind("record", "--out", "plain-script", "plain.py", cwd=home)
    small = {"features": 4, "steps": 3, "seal": False}
    (home / "tokens.py").write_text(TOKENS)
    chromium.rewind("record", "--detail", "full", "--out", "tokens", "tokens.py", cwd=home)
    make_trace(home / "odd" / "killed", **{**small, "steps": 9}, inputs=64, close=False)
    make_trace(home / "odd" / "no-steps", **{**small, "steps": 0}, inputs=64)
    make_trace(home / "odd" / "plain", **small, inputs=5, weights=False, captures=False)
    make_trace(home / "odd" / "one-step", **{**small, "steps": 1}, inputs=64, nan_at=0)
    make_trace(home / "odd" / "no-weights", **small, inputs=64, weights=False)
    make_trace(home / "odd" / "hole", **{**small, "seal": True}, inputs=64)
    (home / "odd" / "hole" / "tensors.zarr" / "captures" / "bcl" / "win_rate" / "c" / "0" / "0").unlink()
    with chromium.app(*(home / n for n in ("demo", "plain-script", "tokens", "odd"))) as address:
        yield address


@pytest.fixture(scope="module")
def chrome():
    with chromium.browser() as found:
        yield found


@pytest.fixture
def open_page(chrome, url):
    pages = []

    def start(query="run=demo", **options):
        pages.append(chromium.Page(chrome, url, query, **options))
        return pages[-1]

    yield start
    for page in pages:
        page.page.close()
    assert [c for page in pages for c in page.complaints] == []


MARKS = {
    "overview": "Which images cause the most trouble?",
    "batch": "128 images of 28",
    "features": "win rate",
    "forces": "cosine of gradient and SOM delta",
    "matrices": "off the diagonal: mean",
    "trajectories": "cosine between the watched",
    "metrics": "smoothing",
    "replay": "Re-execute step 20",
    "sql": "order by loss desc",
}


@pytest.mark.parametrize("tab", MARKS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab_by_its_link(open_page, tab, theme):
    page = open_page(f"run=demo&step=20&feature=9&tab={tab}", theme=theme)
    if tab == "sql":
        page.page.get_by_text("20 rows in").wait_for()
        assert MARKS[tab] in page.page.get_by_label("SQL", exact=True).input_value()
    else:
        page.page.get_by_text(MARKS[tab]).first.wait_for(timeout=10_000)
    assert page.page.locator("[role=status].problem:visible").count() == 0
    assert f"step=20&feature=9&tab={tab}" in page.page.url
    assert "token" not in page.page.url


def test_every_key(open_page):
    page = open_page("run=demo&step=5&tab=features")
    press = page.page.keyboard.press
    for key, step in [
        ("ArrowRight", 6),
        ("ArrowLeft", 5),
        ("Shift+ArrowRight", 105),
        ("Shift+ArrowLeft", 5),
        ("End", STEPS - 1),
        ("Home", 0),
        ("ArrowLeft", 0),
    ]:
        press(key)
        page.shown(step)
    press("Space")
    page.page.wait_for_function("() => Number(new URL(location).searchParams.get('step')) >= 3")
    press("Space")
    press("3")
    page.page.wait_for_selector("[data-tab=forces].on")
    press("u")
    page.page.wait_for_selector("[data-tab=features].on")
    press("Shift+U")
    page.page.wait_for_selector("[data-tab=forces].on")
    press("g")
    page.page.keyboard.type("42")
    press("Enter")
    page.shown(42)
    page.page.locator("[role=slider]").focus()
    press("?")
    page.page.get_by_placeholder("find a shortcut").fill("hundred")
    assert page.page.locator("dialog dt").count() == 0
    page.page.get_by_placeholder("find a shortcut").fill("100 steps")
    assert page.page.locator("dialog dt").count() == 1
    page.page.get_by_role("button", name="Close").click()
    press("t")
    page.page.wait_for_function("() => document.documentElement.dataset.rwTheme === 'dark'")


def test_the_keys_stay_the_pages_own(open_page):  # C2
    """Backward from the end; after a step was typed, a box ticked, a list set by the mouse, the next arrow is a step."""
    page = open_page("run=demo&step=5&tab=forces").page
    number, press = page.get_by_label("step number"), page.keyboard.press
    press("End")
    page.wait_for_function("(k) => location.search.includes(`step=${k}`)", arg=STEPS - 1)
    press("r")
    page.wait_for_function("(k) => !location.search.includes(`step=${k}&`)", arg=STEPS - 1)
    press("Space")
    number.fill("42")
    press("Enter")
    page.wait_for_selector("[data-shown='42']")
    press("ArrowRight")
    page.wait_for_selector("[data-shown='43']")
    number.fill("")
    press("Enter")
    page.wait_for_function(
        f"() => {{ {WALK} return all.some((n) => n.ariaLabel === 'step number' && n.value === '43'); }}"
    )
    page.get_by_label("log axes").click()
    press("ArrowRight")
    page.wait_for_selector("[data-shown='44']")
    rate = page.get_by_label("steps per second")
    rate.dispatch_event("pointerdown")
    rate.focus()
    rate.select_option("1000/s")
    press("ArrowRight")
    page.wait_for_selector("[data-shown='45']")
    assert rate.input_value() == "1000"
    press("Space")
    page.wait_for_function("(k) => location.search.includes(`step=${k}`)", arg=STEPS - 1, timeout=3000)
    press("?")
    page.keyboard.type("undo")
    press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_the_filter_is_said_and_kept(open_page):  # S4.4
    page = open_page("run=demo&step=20&tab=features").page
    find = page.get_by_label("filter features")
    find.fill("nosuch > 3")
    page.get_by_text("There is no column nosuch.").wait_for()
    find.fill("win rate > 2")
    page.get_by_text("No feature matches “win rate > 2”").wait_for()
    find.fill("feature >= 60")
    assert page.locator("[data-feature]").count() == 4
    page.get_by_role("columnheader", name="win rate").click()
    page.wait_for_url(re.compile("features.filter=feature.*features.sort=-win_rate"))
    first = page.locator("[data-feature]").first.get_attribute("data-feature")
    page.reload()
    page.locator(f"[data-feature='{first}']").wait_for()
    assert find.input_value() == "feature >= 60"
    assert page.locator("[data-feature]").first.get_attribute("data-feature") == first


@pytest.mark.parametrize("size", [(1280, 800), (1440, 900), (1920, 1080)])
def test_what_has_room_is_seen_without_scrolling(open_page, size):
    page = open_page("run=demo&step=20&tab=batch", size=size).page
    beyond = (
        "() => [document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight - innerHeight]"
    )
    for tab in ("batch", "features", "trajectories", "metrics", "replay"):
        page.locator(f"[data-tab={tab}]").click()
        page.get_by_text(MARKS[tab]).first.wait_for()
        page.wait_for_timeout(800)  # charts come late, and have no end to wait for
        assert page.evaluate(beyond) == [0, 0], tab


def test_reload_in_the_middle_and_two_pages_at_once(open_page):
    one, two = open_page("run=demo&step=10"), open_page("run=demo&step=20&tab=features")
    one.page.keyboard.press("ArrowRight")
    one.shown(11)
    one.page.wait_for_url(re.compile("step=11"))  # the address follows a little later
    assert "step=20" in two.page.url
    one.page.reload()  # the token is gone from the address: the cookie lets it in
    one.shown(11)
    two.page.keyboard.press("ArrowRight")
    two.shown(21)


def test_the_overview_answers_and_leads_there(open_page):  # S4.9
    page = open_page("run=demo")
    page.page.wait_for_selector("[data-tab=overview].on")
    page.page.get_by_text("The run goes on").wait_for(state="detached")
    page.page.get_by_text("features converging").wait_for(timeout=60_000)
    page.page.get_by_role("button", name="Which images cause the most trouble? Batch").click()
    page.page.wait_for_selector("[data-tab=batch].on")
    page.page.wait_for_function("() => new URL(location).searchParams.get('batch.sort') === 'loss_per_sample'")
    assert page.page.get_by_label("sort by").input_value() == "loss_per_sample"
    page.page.keyboard.press("0")
    page.page.get_by_role("button", name="features converging: the numbers").click()
    page.page.get_by_text("rows in").wait_for()
    assert "from metrics" in page.page.get_by_label("SQL", exact=True).input_value()


def test_the_four_questions_take_a_click_or_two(open_page):  # S4.9
    """As README says of each: the page that opens has the answer in a line, one click shows it; a feature is asked for by number."""
    page = open_page("run=demo").page

    def click(question, tab):
        page.get_by_role("button", name=f"{question} {tab.title()}").click()
        page.wait_for_selector(f"[data-tab={tab}].on")

    def back():
        page.keyboard.press("0")
        page.wait_for_selector("[data-tab=overview].on")

    page.get_by_text("mean cosine between the rows of encoder.weight went from").wait_for()
    click("Why do features converge?", "matrices")
    page.get_by_text("bcl/som_targets, step").wait_for()
    back()
    page.get_by_text("features are pulled apart at step").wait_for()
    click("Is the gradient fighting the SOM?", "forces")
    page.get_by_text("SOM : gradient over all steps").or_(page.get_by_text("agree")).first.wait_for()
    back()
    page.get_by_text("dead at the end").wait_for()
    click("When did features die?", "trajectories")
    page.get_by_text(re.compile("[0-9]+ died at [0-9]+")).first.wait_for()
    watched = page.get_by_role("textbox", name="watched")
    watched.fill("31")
    watched.press("Enter")
    page.get_by_text(re.compile("31 died at [0-9]+|none of these is dead at the end")).wait_for()
    watched.blur()
    back()
    click("Which images cause the most trouble?", "batch")
    page.wait_for_function("() => new URL(location).searchParams.get('batch.sort') === 'loss_per_sample'")
    page.get_by_text("Features that score highest on it").wait_for()


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0004, 0.03, [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02]),
        (300, 2500, [300, 500, 700, 1000, 2000]),
        (88, 155, [100, 120, 140]),
        (1e-9, 1e9, [1e-9, 1e-6, 1e-3, 1, 1e3, 1e6, 1e9]),
        (-1, 5, []),
    ],
)
def test_logarithmic_axes_have_round_numbers_all_over(chrome, low, high, wanted):  # S2.3
    page = chrome.new_page()
    code = figures._ROUND
    assert page.evaluate(f"(cb_data) => {{ {code} }}", {"start": low, "end": high}) == pytest.approx(wanted)
    page.close()


def test_what_was_set_is_undone_and_comes_with_the_link(open_page):
    page = open_page("run=demo&step=20&tab=metrics")
    page.page.get_by_label("log scale").check()
    page.page.wait_for_url(re.compile("metrics.log=1"))
    page.page.reload()
    page.page.get_by_text("smoothing").wait_for()
    assert page.page.get_by_label("log scale").is_checked()
    page.page.get_by_label("log scale").uncheck()
    page.page.wait_for_function("() => !location.search.includes('metrics.log')")
    page.page.get_by_role("button", name="undo a change of view").click()
    page.page.wait_for_url(re.compile("metrics.log=1"))
    page.page.wait_for_function(f"() => {{ {WALK} return all.some((n) => n.type === 'checkbox' && n.checked); }}")


def test_a_range_is_looped(open_page):
    page = open_page("run=demo&step=0&tab=features")
    track = page.page.get_by_role("slider")
    box = track.bounding_box()
    page.page.keyboard.down("Shift")
    page.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] * 0.53, box["y"] + 20)
    page.page.mouse.up()
    page.page.keyboard.up("Shift")
    loop = page.page.get_by_title("clear the loop")
    first, last = map(int, re.findall(r"\d+", loop.inner_text()))
    assert 50 < first < last < 80
    page.page.get_by_label("steps per second").select_option("5/s")
    page.page.keyboard.press("Space")
    page.shown(last)
    page.shown(first)
    page.shown(last)
    page.page.keyboard.press("Space")
    page.page.keyboard.press("Escape")
    assert not loop.is_visible()


def test_a_step_run_again_fills_what_was_not_recorded(open_page):  # C3
    page = open_page("run=plain-script&step=3&tab=forces")
    page.page.get_by_text("The gradients of step 3 were not recorded").first.wait_for()
    page.page.get_by_role("button", name="Re-execute step 3").click()
    page.page.get_by_text("cosine of gradient and movement").wait_for(timeout=90_000)
    page.page.locator(".chip.verified", has_text="verified").first.wait_for()
    page.tab("features")
    page.page.get_by_text("gradient norm").wait_for()


def test_a_burst_of_keys_ends_where_it_should(open_page):
    page = open_page("run=demo&step=0&tab=features")
    for _ in range(60):
        page.page.keyboard.press("ArrowRight")
    page.shown(60)


def test_a_feature_that_is_clicked_is_chosen_everywhere(open_page):  # S4.4
    page = open_page("run=demo&step=20&tab=features")
    page.page.get_by_label("filter features").fill("17")
    page.page.locator("[data-feature='17']").click()
    page.page.wait_for_url(re.compile("feature=17"))
    page.tab("forces")
    page.page.get_by_text("Feature 17, step 20").wait_for()


def test_an_image_that_is_clicked_says_its_loss_and_winners(open_page):  # S4.2
    page = open_page("run=demo&step=20&tab=batch")
    page.page.get_by_label("sort by").select_option("loss_per_sample")
    page.page.get_by_label("the batch's images").click(position={"x": 70, "y": 20})
    page.page.get_by_text("Features that score highest on it").wait_for()
    assert page.page.locator("dd").count() == 4


def test_a_step_is_re_executed_and_verified(open_page):  # C3
    page = open_page("run=demo&step=20&tab=replay")
    page.page.get_by_role("button", name="Re-execute step 20").click()
    page.page.wait_for_selector("[data-verdict=verified]", timeout=90_000)
    rows = page.page.locator("[data-table=activations] tbody tr")
    assert "encoder" in rows.locator("td:first-child").all_inner_texts()
    page.page.get_by_role("button", name="forward by re-execution").click()
    page.page.get_by_text("Re-execute step 21").wait_for()
    page.page.wait_for_selector("[data-verdict=verified]", timeout=30_000)


def test_sql(open_page):  # C4
    page = open_page("run=demo&step=20&tab=sql")
    box, run = page.page.get_by_label("SQL", exact=True), page.page.get_by_text("Run (Ctrl+Enter)")
    box.fill("select step from nothing")  # Before the page's own first question has come, perhaps: it stays.
    run.click()
    page.page.get_by_text("Table with name nothing does not exist").wait_for()
    box.fill("select 1234567 as n, 1795840872.125::double as t, 'nan'::double as x, 'inf'::double as y, {'a': 1} as s")
    run.click()
    page.page.get_by_text("1 row in").wait_for()
    assert page.page.locator("tbody td").all_inner_texts() == ["1234567", "1795840872.125", "NaN", "∞", '{"a":1}']
    box.fill("select step, loss from steps where step = 33")
    box.press("Control+Enter")
    page.page.locator("tr.link").first.click()
    page.page.wait_for_url(re.compile("step=33"))
    page.page.get_by_label("examples").select_option("alive")
    page.page.get_by_text("130 rows in").wait_for()


def test_what_is_shown_is_downloaded(open_page):
    page = open_page("run=demo&step=20&tab=features")
    with page.page.expect_download() as download:
        page.page.get_by_label("export what is shown").select_option("csv")
    lines = download.value.path().read_text("utf-8").splitlines()
    assert (lines[0][:23], len(lines)) == ("feature,status,win_rate", 65)


@pytest.mark.parametrize("run", ["plain", "one-step", "no-weights", "killed", "tokens"])
def test_traces_that_lack_things_say_so(open_page, run):
    page = open_page(f"run={run}")
    for tab in MARKS:
        page.tab(tab)
        if run in ("killed", "tokens"):
            page.page.wait_for_function(f"() => {{ {SAID} return words.length > 40; }}")  # No tab is a blank.
    assert page.page.locator("[role=status].problem:visible").count() == 0


def test_a_trace_without_steps_says_so(open_page):
    page = open_page("run=no-steps")
    page.page.get_by_text("This trace has no steps yet").wait_for()


def test_a_killed_run_is_crashed_and_not_live(open_page):  # S2.1
    page = open_page("run=killed&tab=features")
    page.page.locator("[data-status=crashed]").wait_for(state="attached")
    assert "step=" in page.page.url


def test_tokens_words_and_bfloat16_are_shown(open_page):
    page = open_page("run=tokens&step=2&tab=batch")
    page.page.get_by_text("a sentence, number 8").first.wait_for()
    page.tab("metrics")
    for heading in ("train (1)", "val (1)"):
        page.page.get_by_role("button", name=heading).wait_for()
    page.page.get_by_role("button", name="train (1)").click()
    page.page.wait_for_url(re.compile("metrics.folded=train"))
    assert page.page.get_by_role("button", name="train (1)").get_attribute("aria-expanded") == "false"


def test_a_missing_chunk_is_named_and_the_rest_is_shown(open_page):
    page = open_page("run=hole&step=1&tab=features")
    page.page.get_by_text("win_rate cannot be shown").wait_for()
    page.page.get_by_text("feature novelty").first.wait_for()
    page.tab("batch")
    page.page.get_by_text("32 images of 8").wait_for()


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_charts_on_show_are_saved_as_a_picture(open_page, form):
    page = open_page("run=demo&step=20&tab=forces")
    page.page.get_by_text("cosine of gradient and SOM delta").wait_for()
    page.page.wait_for_function("() => Bokeh.index.roots.length > 0")
    with page.page.expect_download() as download:
        page.page.get_by_label("export what is shown").select_option(form)
    assert download.value.suggested_filename == f"demo-forces-20.{form}"
    data = download.value.path().read_bytes()
    if form == "svg":
        words = [node.text for node in ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}text")]
        assert {"Forces per feature, coloured by win rate", "Feature 0, step 20"} <= {w.strip() for w in words if w}
    else:
        assert data.startswith(b"\x89PNG")


PICTURED = {
    "overview": {"What one asks", "agree"},
    "batch": {"128 images of 28", "Features that score highest on it"},
    "features": {"win rate", "contender"},
    "matrices": {"encoder.weight, step 20", "mean"},
    "trajectories": {"cosine between the watched, step 20", "feature"},
    "metrics": {"loss", "grad norm"},
    "replay": {"Verdicts kept in the trace"},
    "sql": {"grad_norm", "20 rows in"},
}
"""Words that the picture of a tab has."""


def test_every_tab_is_saved_as_a_picture(open_page):
    page = open_page("run=demo&step=20&tab=forces")
    for tab, wanted in PICTURED.items():
        page.tab(tab)
        for word in wanted:
            page.page.get_by_text(word).first.wait_for()
        page.page.wait_for_function("() => Bokeh.index.roots.length > 0")
        with page.page.expect_download() as download:
            page.page.get_by_label("export what is shown").select_option("svg")
        assert download.value.suggested_filename == f"demo-{tab}-20.svg"
        drawn = ElementTree.fromstring(download.value.path().read_bytes())
        nodes = list(drawn.iter())
        words = " | ".join(node.text.strip() for node in nodes if node.tag.endswith("}text") and node.text)
        assert [word for word in wanted if word not in words] == [], (tab, words)
        grounds = {node.get("fill") for node in nodes if node.tag.endswith("}rect")}
        if tab == "overview":
            assert len(grounds) >= 4, "its bars and what their colours mean"
        if tab == "sql":
            assert "select step, epoch, loss" in words, "the question, too"
        with page.page.expect_download() as download:
            page.page.get_by_label("export what is shown").select_option("png")
        with Image.open(download.value.path()) as picture:
            painted = picture.convert("RGB")
        assert painted.size == (2 * int(drawn.get("width")), 2 * int(drawn.get("height"))), tab
        assert len(painted.getcolors(1 << 24)) > 100, f"{tab}: words are smooth, on more than one ground"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_aa(open_page, theme):
    page = open_page("run=demo&step=20&tab=batch", theme=theme)
    for tab in MARKS:
        page.tab(tab)
        if tab != "sql":
            page.page.get_by_text(MARKS[tab]).first.wait_for()
        assert page.page.evaluate(FAINT) == [], tab


def test_every_control_is_reached_by_the_keyboard(open_page):
    page = open_page("run=demo&step=20&tab=forces")
    page.page.get_by_text(MARKS["forces"]).first.wait_for()
    page.page.evaluate("() => document.activeElement && document.activeElement.blur()")
    missed = set(page.page.evaluate(CONTROLS))
    assert len(missed) > 20
    for _ in range(3 * len(missed)):
        page.page.keyboard.press("Tab")
        missed.discard(page.page.evaluate(FOCUSED))
        if not missed:
            break
    assert missed == set()


def test_another_run_is_chosen_from_the_list(open_page):
    page = open_page("run=demo&step=20&tab=batch")
    page.page.get_by_label("run", exact=True).fill("plain")
    page.page.keyboard.press("Enter")
    page.page.get_by_text("float32 [32, 5]").wait_for()
    assert "run=plain" in page.page.url


def test_nobody_gets_in_without_the_token(url):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url.partition("?")[0], timeout=10)
    assert refused.value.code == 403
    refused.value.close()
