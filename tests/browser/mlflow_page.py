"""MLflow's page as a person uses it: the browser's one tab, clicks, charts as numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PAGE_S = 40


# Plotly keeps the points of a chart in its element, so they are compared as numbers.
READ_CHART = """
const cards = [...document.querySelectorAll('[data-testid="experiment-view-compare-runs-card"]')];
const card = cards.find(card => card.innerText.split('\\n')[0] === arguments[0]);
const plot = card?.querySelector('.js-plotly-plot');
const title = card?.querySelector('svg .xtitle')?.textContent;
const traces = plot?.data?.map(trace => ({name: trace.name, x: trace.x, y: trace.y}));
return traces?.length && title ? {x_title: title, traces, ...traces[0]} : null;
"""


@dataclass(frozen=True)
class Page:
    """The browser's one tab. Everything waits for what it needs."""

    driver: webdriver.Chrome
    url: str
    screenshots: Path

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def until(self, ask: Callable[[], Any], what: str) -> Any:
        """The first answer that is true. A failure leaves a picture of the page."""
        passing = (
            StaleElementReferenceException,
            ElementClickInterceptedException,
            ElementNotInteractableException,
        )
        try:
            return WebDriverWait(self.driver, PAGE_S, 0.2, passing).until(
                lambda _: ask(), f"no {what} in {PAGE_S} s"
            )
        except TimeoutException:
            self.screenshot("timeout")
            raise

    def until_text(self, *wanted: str) -> None:
        self.until(
            lambda: all(text in self.text for text in wanted), f"{' or '.join(wanted)} on the page"
        )

    def click(self, selector: str, text: str = "") -> None:
        """Clicks the first element with exactly this text."""
        self._act(lambda element: element.click(), selector, text)

    def choose(self, selector: str, text: str) -> None:
        """Chooses an item of a submenu by keyboard: WebDriver's mouse jumps there, and a submenu
        closes unless the mouse is seen moving towards it.
        """
        self._act(lambda element: element.send_keys(Keys.ENTER), selector, text)

    def search_charts(self, metric: str, section: str = "") -> None:
        """Leaves one chart on the page, in this section; by default in that of its name."""
        field = self.until(
            lambda: self.driver.find_element(
                By.CSS_SELECTOR, "input[placeholder='Search metric charts']"
            ),
            "search field for charts",
        )
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(metric)
        self.until_text(f"{section or metric.split('/')[0]}\n(1)")

    def chart(self, name: str, x_title: str) -> dict[str, Any]:
        """The points of the chart with this name, once its x-axis has this title."""

        def drawn() -> dict[str, Any] | None:
            chart: dict[str, Any] | None = self.driver.execute_script(READ_CHART, name)
            return chart if chart and chart["x_title"] == x_title else None

        points: dict[str, Any] = self.until(drawn, f"chart {name} against {x_title}")
        return points

    def screenshot(self, name: str) -> None:
        self.screenshots.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(self.screenshots / f"{name}.png")

    def open_runs(self) -> None:
        """From the start page to the runs of the experiment."""
        self.driver.get(self.url)
        self.click("[role=button]", "Model training")
        self.click("a", "multipruner")

    def open_run(self, tab: str) -> None:
        self.open_runs()
        self.click("a", "tiny-llama 30% 40:40:20")
        self.click("[role=tab]", tab)

    def _act(self, action: Callable[[WebElement], None], selector: str, text: str) -> None:
        def acted() -> bool:
            element = next(
                (
                    found
                    for found in self.driver.find_elements(By.CSS_SELECTOR, selector)
                    if found.text == text
                ),
                None,
            )
            if element is not None:
                action(element)
            return element is not None

        self.until(acted, f"{selector} with the text {text!r}")
