"""A search, a real MLflow server and a real browser: what a user finds on the MLflow page of a run.

MULTIPRUNER_SCREENSHOTS=FOLDER keeps the pictures of the page.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import MARKS, chromium
from tests.browser.mlflow_page import Page
from tests.browser.searches import Search, printed_link, read_search, run_job, run_search

pytestmark = MARKS

SERVER_START_S = 90

LARGE = "Perplexity against ratio"
SECTIONS = {
    LARGE: 1,
    "Held-out perplexity of what came out": 1,
    "What remains of each layer (%)": 2,
    "Which layer was cut at which step": 1,
    "Where the time went (seconds)": 2,
    "prune": 8,
}
"""Of the preset view, with the number of their charts."""
FIRST_CHART = """
const cards = [...document.querySelectorAll('[data-testid="experiment-view-compare-runs-card"]')];
return [
  cards[0].innerText.split('\\n')[0],
  cards.slice(1).every(card => card.clientHeight < cards[0].clientHeight),
];
"""
"""Its name, and whether it is larger than all others."""

NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the searches write; they share a store and a tracking database."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def search(checkpoint_folder: Path, token_file: Path, folder: Path) -> Search:
    found = run_search(
        folder,
        checkpoint_folder,
        token_file,
        "run",
        "tiny-llama 30% 40:40:20",
        "search.target_ratio=0.3",
        "search.distribution=[40,40,20]",
    )
    assert {step["stage"] for step in found.steps} == {"block", "mlp_channels", "attention_heads"}
    return found


@pytest.fixture(scope="module")
def three_searches(
    search: Search, checkpoint_folder: Path, token_file: Path, folder: Path
) -> list[Search]:
    """The search of the other tests, one of blocks only, and one that goes further.

    Only the last test asks for it: the others expect one run.
    """
    blocks = run_search(
        folder,
        checkpoint_folder,
        token_file,
        "blocks",
        "tiny-llama 35% 1:0:0",
        "search.target_ratio=0.35",
        "search.distribution=[1,0,0]",
    )
    further = run_search(
        folder,
        checkpoint_folder,
        token_file,
        "further",
        "tiny-llama 40% 20:60:20",
        "search.target_ratio=0.4",
        "search.distribution=[20,60,20]",
    )
    return [search, blocks, further]


@pytest.fixture(scope="module")
def server(search: Search, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server over what the search wrote."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    env = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", search.tracking_uri],
            cwd=log.parent,
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + SERVER_START_S
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def page(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NO_ASSISTANT})
        screenshots = os.environ.get("MULTIPRUNER_SCREENSHOTS")
        yield Page(
            driver,
            server,
            Path(screenshots) if screenshots else tmp_path_factory.mktemp("screenshots"),
        )


def test_experiment_lists_the_run(page: Page) -> None:
    page.open_runs()
    page.until_text("1 matching run", "tiny-llama 30% 40:40:20", "tokens-block")
    page.screenshot("1-runs")


def test_overview_tells_what_was_run_and_what_came_of_it(page: Page, search: Search) -> None:
    page.open_run("Overview")
    page.until_text("Finished", "Metrics (", "Parameters (", "tokens-block (")
    last = search.steps[-1]
    metrics = {
        "prune/perplexity": last["perplexity"],
        "prune/ratio": last["ratio"],
        "prune/num_parameters": last["num_parameters"],
        "result/heldout_perplexity": search.summary["perplexity"]["heldout"]["pruned"],
        "result/heldout_perplexity_dense": search.summary["perplexity"]["heldout"]["dense"],
        "result/flops_per_token": search.summary["flops_per_token"]["pruned"],
    }
    shown = page.text.splitlines()
    for name, value in metrics.items():
        assert float(shown[shown.index(name) + 1]) == pytest.approx(value), name
    params = {
        "model.dtype": "float32",
        "search.target_ratio": "0.3",
        "search.distribution": "[40.0, 40.0, 20.0]",
        "calibration.source": "tokens",
    }
    for name, text in params.items():
        assert shown[shown.index(name) + 1] == text, name
    page.screenshot("2-overview")
    page.click("button", "+2")
    page.until_text("tokens-width (", "tokens-heldout (")
    page.screenshot("3-datasets")


def test_the_description_has_numbers_picture_and_command(page: Page, search: Search) -> None:
    page.open_run("Overview")
    page.click("button", "Show more")
    pair = search.summary["perplexity"]["heldout"]
    page.until_text(
        f"of the parameters removed (asked for 30.0%; strategy {search.summary['strategy']})",
        "perplexity, held-out text",
        f"{pair['dense']:,.4g}",
        f"{pair['pruned']:,.4g}",
        "multipruner prune model.path=",
    )
    drawn = (
        "return [...document.images].some(image => "
        "image.src.includes('path=trajectory.png') && image.naturalWidth > 100)"
    )
    page.until(lambda: page.driver.execute_script(drawn), "picture of the path")
    page.screenshot("2-description")


def test_metrics_are_charts_by_step(page: Page, search: Search) -> None:
    page.open_run("Model metrics")
    page.until_text("prune\n(11)", "result\n(10)", "layer\n(2)", "time\n(4)")
    page.screenshot("4-metrics")
    for name in ("ratio", "num_parameters", "flops_per_token", "perplexity"):
        page.search_charts(f"prune/{name}")
        chart = page.chart(name, "Step")
        assert chart["x"] == list(range(len(search.steps) + 1)), name
        assert chart["y"][1:] == pytest.approx([step[name] for step in search.steps]), name
    assert chart["y"][0] == pytest.approx(search.perplexities[0])
    page.screenshot("5-perplexity-by-step")


def test_ratio_goes_on_the_x_axis(page: Page, search: Search) -> None:
    page.open_runs()
    page.click("label:has(input[name=runs-view-mode][value=CHART])")
    page.search_charts("prune/perplexity")
    page.chart("prune/perplexity", "Step")
    page.click("button[aria-label='Configure charts']")
    page.click("[role=menuitem]", "Metric")
    page.screenshot("6-x-axis-menu")
    page.choose("[role=menuitemcheckbox]", "prune/ratio")
    chart = page.chart("prune/perplexity", "prune/ratio")
    assert chart["x"] == pytest.approx(search.ratios)
    assert chart["y"] == pytest.approx(search.perplexities)
    page.screenshot("7-perplexity-by-ratio")


def test_the_printed_link_opens_charts_against_ratio(page: Page, search: Search) -> None:
    page.driver.get("about:blank")
    page.driver.get(page.url + search.printed_path)
    page.until_text("Against ratio", *(f"{name}\n({number})" for name, number in SECTIONS.items()))
    assert page.driver.execute_script(FIRST_CHART) == ["prune/perplexity", True]
    page.screenshot("9-preset-view")
    page.search_charts("prune/perplexity", LARGE)
    chart = page.chart("prune/perplexity", "prune/ratio")
    assert chart["x"] == pytest.approx(search.ratios)
    assert chart["y"] == pytest.approx(search.perplexities)
    page.screenshot("9-printed-link")


@pytest.mark.parametrize("picture", ["trajectory.png", "shape.png"])
def test_pictures_are_shown(page: Page, picture: str) -> None:
    page.open_run("Artifacts")
    page.click("div", picture)
    selector = f"img[alt='{picture}']"
    widths = (
        "return [...document.querySelectorAll(arguments[0])].map(image => image.complete && "
        "image.naturalWidth)"
    )
    page.until(lambda: any(page.driver.execute_script(widths, selector)), f"picture {picture}")
    page.screenshot(f"8-{Path(picture).stem}")


def test_three_trajectories_lie_over_one_another(page: Page, three_searches: list[Search]) -> None:
    """One chart, ratio across, a curve for each search."""
    page.driver.get("about:blank")
    page.driver.get(page.url + three_searches[0].printed_path)
    page.until_text("Against ratio", "3 matching runs")
    check_curves(page, three_searches)
    page.screenshot("10-three-trajectories")


def test_the_points_of_a_sweep_lie_over_one_another(
    page: Page, checkpoint_folder: Path, token_file: Path, folder: Path
) -> None:
    """The link that a sweep prints opens its points side by side, not folded into their parent."""
    targets = (0.1, 0.2, 0.3)
    settings = (
        f"search.target_ratio=[{','.join(map(str, targets))}]",
        "search.distribution=[44,52,4]",
        "tracking.experiment=sweeps",
    )
    path = printed_link(run_job("sweep", folder, checkpoint_folder, token_file, "sweep", *settings))
    names = [f"tiny-llama {target:.0%} 44:52:4" for target in targets]
    points = [
        read_search(folder / f"sweep/target_ratio_{target}", name, "", path)
        for target, name in zip(targets, names, strict=True)
    ]
    page.driver.get("about:blank")
    page.driver.get(page.url + path)
    page.until_text("sweep of 3 points, against ratio", "3 matching runs")
    check_curves(page, points)
    page.screenshot("11-sweep")


def check_curves(page: Page, searches: list[Search]) -> None:
    """One chart of perplexity with a curve for each search, through every one of its steps."""
    page.search_charts("prune/perplexity", LARGE)

    def curves() -> dict[str, dict[str, Any]]:
        """By run. MLflow draws each a second time, smoothed, which nobody asked for here."""
        return {
            trace["name"]: trace
            for trace in reversed(page.chart("prune/perplexity", "prune/ratio")["traces"])
        }

    page.until(
        lambda: set(curves()) == {search.run_name for search in searches},
        "curve of each of the searches in one chart",
    )
    drawn = curves()
    for search in searches:
        assert drawn[search.run_name]["x"] == pytest.approx(search.ratios)
        assert drawn[search.run_name]["y"] == pytest.approx(search.perplexities)
        assert search.run_name in page.text


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
