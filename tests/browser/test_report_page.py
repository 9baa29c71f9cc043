"""The report's page in a real browser, opened from disk with the network off.

MULTIPRUNER_SCREENSHOTS=FOLDER keeps the pictures of the page.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.report.folders import read_runs
from pipelines.report.page import render
from pipelines.report.sections import sections
from tests.browser.chromium import MARKS, chromium
from tests.pipelines.report.reports import Step, an_evaluation, heldout_nll, write_run

pytestmark = MARKS

NAME = (
    "<img src=http://127.0.0.1:9/x onerror=alert(1)> & a name that is too long to stand "
    "anywhere in one line of a narrow page"
)
READ_PLOTS = """
const points = trace => ({
  name: trace.name ?? null, type: trace.type,
  x: [...trace.x ?? []], y: [...trace.y ?? []], z: trace.z?.map(row => [...row]) ?? null,
});
const plots = [...document.querySelectorAll('.js-plotly-plot')];
return Object.fromEntries(plots.map(plot => [
  plot.id, {
    data: plot.data.map(points),
    drawn: plot.querySelectorAll('.trace, .hm').length, width: plot.clientWidth,
  },
]));
"""
ERROR_BARS = """
const inside = (bar, frame) => bar.top >= frame.top - 1 && bar.bottom <= frame.bottom + 1
  && bar.left >= frame.left - 1 && bar.right <= frame.right + 1;
return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
  const frames = [...plot.querySelectorAll('.nsewdrag')].map(each => each.getBoundingClientRect());
  return [...plot.querySelectorAll('.errorbar path')].map(bar => ({
    plot: plot.id,
    inside: frames.some(frame => inside(bar.getBoundingClientRect(), frame)),
  }));
});
"""
EXPECTED = {
    "trajectory-block",
    "trajectory-width",
    "fragility",
    "margin-A",
    "margin-B",
    "margin-C",
    "votes-0",
    "overlap-0",
    "left-A",
    "left-B",
    "left-C",
    "front",
    "front-0",
    "front-1",
    "accuracy",
}


def steps(first: str, margin: float) -> list[Step]:
    """Two blocks, then MLP channels."""
    second = "attention:3"
    return [
        (first, {first: (2.0, 0.0), "mlp:1": (2.0 + margin, 0.05), "attention:0": (2.6, 0.1)}),
        (second, {second: (2.2, 0.0), "mlp:1": (2.5, 0.05)}),
        ("mlp_channels:0:6", {"mlp_channels:0:6": (2.4, 0.0), "mlp_channels:2:6": (2.44, 0.03)}),
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    settings = {"search.importance": "l1", "calibration.path": "/a/path/" + "long/" * 30}
    paths = [
        write_run(
            folder / "first",
            steps("attention:1", 0.02),
            evaluation=an_evaluation(0.3, 25.0, 0.55),
            summary=heldout_nll(2.5, 2.71, 2.9, 3.1),
        ),
        write_run(
            folder / NAME.replace("/", "_"),
            steps("attention:2", 0.4),
            summary=heldout_nll(2.1, 2.5, 2.5, 2.7),
            settings=settings,
            evaluation=an_evaluation(0.3, 30.0, 0.5),
        ),
        write_run(folder / "stopped", steps("attention:1", 0.02)[:1], ended=False),
    ]
    path = folder / "report.html"
    path.write_text(
        render(
            "3 searches compared", "MultiPruner", sections(read_runs([str(path) for path in paths]))
        ),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("MULTIPRUNER_SCREENSHOTS")
    return Path(given) if given else tmp_path_factory.mktemp("screenshots")


def opened(
    driver: webdriver.Chrome, page: Path, width: int, *, phone: bool = False
) -> dict[str, Any]:
    """Opens the page with the network off; returns what its figures hold."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # what is left from before
    driver.get(page.as_uri())
    return plots(driver)


def plots(driver: webdriver.Chrome) -> dict[str, Any]:
    """What the figures that are drawn hold."""
    found: dict[str, Any] = driver.execute_script(READ_PLOTS)
    return found


def unfold(driver: webdriver.Chrome) -> None:
    """Opens everything; figures are drawn when the browser says that a part was opened."""
    driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = 1")
    WebDriverWait(driver, 60).until(lambda _: set(plots(driver)) == EXPECTED)


def requests(driver: webdriver.Chrome) -> list[str]:
    """What the page asked for, but for itself and what it carries."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]


def shot(driver: webdriver.Chrome, path: Path, width: int, height: int | None = None) -> None:
    """Of the whole page, or of as much of it as fits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height = height or driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    picture = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    path.write_bytes(base64.b64decode(picture["data"]))


SIZES = pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])


@SIZES
def test_the_answer_is_on_the_first_screen(
    browser: webdriver.Chrome, page: Path, screenshots: Path, name: str, width: int
) -> None:
    """The sentence and the front are in view, and the table's numbers need no sideways scroll; the
    rest is folded, and not drawn.
    """
    assert set(opened(browser, page, width, phone=name == "phone")) == {"front"}
    assert (
        browser.execute_script("return [...document.querySelectorAll('details[open]')].length") == 0
    )
    bottoms = browser.execute_script(
        "return ['.verdict', '#front'].map(each => "
        "document.querySelector(each).getBoundingClientRect().bottom)"
    )
    assert max(bottoms) < 900
    heads = browser.find_elements(By.CSS_SELECTOR, ".result thead th")
    assert [head.text for head in heads[:4]] == [
        "run", "removed", "average accuracy", "held-out perplexity",
    ]  # fmt: skip
    ends = [head.rect["x"] + head.rect["width"] for head in heads]
    assert ends[2] <= width
    if name == "desktop":
        assert ends[-1] <= width
    shot(browser, screenshots / f"first-screen-{name}.png", width, 900)


@SIZES
def test_error_bars_are_whole(browser: webdriver.Chrome, page: Path, name: str, width: int) -> None:
    """Every one ends inside of the frame of its axes."""
    opened(browser, page, width, phone=name == "phone")
    unfold(browser)
    bars = browser.execute_script(ERROR_BARS)
    assert {bar["plot"] for bar in bars} >= {"front-0", "margin-A", "accuracy"}
    assert [bar for bar in bars if not bar["inside"]] == []


@SIZES
def test_every_figure_is_there_and_nothing_sticks_out(
    browser: webdriver.Chrome, page: Path, screenshots: Path, name: str, width: int
) -> None:
    opened(browser, page, width, phone=name == "phone")
    unfold(browser)
    drawn = plots(browser)
    assert all(
        plot["drawn"] and plot["data"] and 0 < plot["width"] <= width for plot in drawn.values()
    ), drawn
    first = drawn["trajectory-block"]["data"][0]
    assert first["name"] == "A first"
    assert first["x"] == pytest.approx([0, 5, 10])
    assert first["y"] == pytest.approx([9.0, math.exp(2.0), math.exp(2.2)])
    assert [trace["name"] for trace in drawn["margin-A"]["data"]] == ["clear", "near-tie"]
    assert drawn["left-A"]["data"][0]["z"][3] == [100, 100, 0, 0]
    assert drawn["left-A"]["data"][1]["z"][0] == [100, 100, 100, 75]
    attention, mlp = drawn["votes-0"]["data"]
    assert attention["y"] == [0, 2, 1, 2]
    assert mlp["y"] == [0, 0, 0, 0]
    assert drawn["overlap-0"]["data"][0]["z"][0] == pytest.approx([1, 1 / 3, 0.5])
    front = drawn["front-0"]["data"][0]
    assert front["y"] == pytest.approx([math.exp(2.3), math.exp(2.45)])
    assert drawn["accuracy"]["data"][1]["y"] == pytest.approx([55.0])
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return document.querySelectorAll('script').length") == 3
    assert browser.execute_script("return [...document.images].length") == 0, "a name is only text"
    assert NAME.split("/")[0] in browser.find_element(By.TAG_NAME, "body").text
    assert browser.get_log("browser") == []
    assert requests(browser) == []
    shot(browser, screenshots / f"report-{name}.png", width)


def test_what_is_folded_has_a_name_and_wide_tables_a_box(
    browser: webdriver.Chrome, page: Path
) -> None:
    opened(browser, page, 390, phone=True)
    folded = browser.find_elements(By.CSS_SELECTOR, ".fold > summary")
    assert [each.text for each in folded][:4] == [
        "Runs", "Other fronts", "Benchmarks", "Trajectories",
    ]  # fmt: skip
    browser.execute_script("arguments[0].click()", folded[3])
    WebDriverWait(browser, 60).until(lambda _: "trajectory-block" in plots(browser))
    assert "fragility" not in plots(browser)
    unfold(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), (
        "wide tables scroll in their own box"
    )
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > "
        "box.clientWidth)"
    )


def test_figures_fit_on_paper(browser: webdriver.Chrome, page: Path, screenshots: Path) -> None:
    """Everything is open and drawn at the width of the paper, and as before afterwards."""
    opened(browser, page, 1280)
    widths = (
        "return [...document.querySelectorAll('.js-plotly-plot "
        ".main-svg:first-child')].map(svg => svg.getBoundingClientRect().width)"
    )
    before = browser.execute_script(widths)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert set(plots(browser)) == EXPECTED
    assert set(browser.execute_script(widths)) == {670}
    assert browser.find_elements(By.CSS_SELECTOR, "details:not([open])") == []
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.find_elements(By.CSS_SELECTOR, "details[open]") == []
    assert browser.execute_script(widths)[:1] == pytest.approx(before, abs=2)
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    screenshots.mkdir(parents=True, exist_ok=True)
    (screenshots / "report.pdf").write_bytes(base64.b64decode(paper["data"]))
    assert browser.get_log("browser") == []
