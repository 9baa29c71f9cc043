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

from pipelines.report.folders import read_runs
from pipelines.report.page import render
from pipelines.report.sections import sections
from tests.browser.chromium import MARKS, chromium
from tests.pipelines.report.reports import Step, an_evaluation, write_run

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
    "pareto-0",
    "pareto-1",
    "pareto-2",
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
            folder / "first", steps("attention:1", 0.02), evaluation=an_evaluation(0.3, 25.0, 0.55)
        ),
        write_run(
            folder / NAME.replace("/", "_"),
            steps("attention:2", 0.4),
            heldout=(10.0, 11.0),
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
    plots: dict[str, Any] = driver.execute_script(READ_PLOTS)
    return plots


def requests(driver: webdriver.Chrome) -> list[str]:
    """What the page asked for, but for itself and what it carries."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]


def shot(driver: webdriver.Chrome, path: Path, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height = driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    picture = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    path.write_bytes(base64.b64decode(picture["data"]))


@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])
def test_every_figure_is_there_and_nothing_sticks_out(
    browser: webdriver.Chrome, page: Path, screenshots: Path, name: str, width: int
) -> None:
    plots = opened(browser, page, width, phone=name == "phone")
    assert set(plots) == EXPECTED
    assert all(
        plot["drawn"] and plot["data"] and 0 < plot["width"] <= width for plot in plots.values()
    ), plots
    first = plots["trajectory-block"]["data"][0]
    assert first["name"] == "A first"
    assert first["x"] == pytest.approx([0, 5, 10])
    assert first["y"] == pytest.approx([9.0, math.exp(2.0), math.exp(2.2)])
    assert [trace["name"] for trace in plots["margin-A"]["data"]] == ["clear", "near-tie"]
    assert plots["left-A"]["data"][0]["z"][3] == [100, 100, 0, 0]
    assert plots["left-A"]["data"][1]["z"][0] == [100, 100, 100, 75]
    attention, mlp = plots["votes-0"]["data"]
    assert attention["y"] == [0, 2, 1, 2]
    assert mlp["y"] == [0, 0, 0, 0]
    assert plots["overlap-0"]["data"][0]["z"][0] == pytest.approx([1, 1 / 3, 0.5])
    front = plots["pareto-0"]["data"][0]
    assert front["y"] == [10.0, 11.0]
    assert plots["accuracy"]["data"][1]["y"] == pytest.approx([55.0])
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return document.querySelectorAll('script').length") == 3
    assert browser.execute_script("return [...document.images].length") == 0, "a name is only text"
    assert NAME.split("/")[0] in browser.find_element(By.TAG_NAME, "body").text
    assert browser.get_log("browser") == []
    assert requests(browser) == []
    shot(browser, screenshots / f"report-{name}.png", width)


def test_links_and_folded_tables(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, 390, phone=True)
    links = browser.find_elements(By.CSS_SELECTOR, "nav a")
    assert [link.text for link in links][:4] == [
        "Runs",
        "Trajectories",
        "Where runs part",
        "Fragile choices",
    ]
    assert browser.execute_script(
        "return [...document.querySelectorAll('nav a')].every(link => "
        "document.querySelector(link.getAttribute('href')))"
    )
    for details in browser.find_elements(By.TAG_NAME, "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), (
        "wide tables scroll in their own box"
    )
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > "
        "box.clientWidth)"
    )


def test_figures_fit_on_paper(browser: webdriver.Chrome, page: Path, screenshots: Path) -> None:
    """Drawn at the width of the paper for printing, and as before afterwards."""
    opened(browser, page, 1280)
    widths = (
        "return [...document.querySelectorAll('.js-plotly-plot "
        ".main-svg:first-child')].map(svg => svg.getBoundingClientRect().width)"
    )
    before = browser.execute_script(widths)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert set(browser.execute_script(widths)) == {670}
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(widths) == pytest.approx(before, abs=2)
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    screenshots.mkdir(parents=True, exist_ok=True)
    (screenshots / "report.pdf").write_bytes(base64.b64decode(paper["data"]))
    assert browser.get_log("browser") == []
