"""The section of a report on what an allocation was chosen from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.report.folders import read_runs
from pipelines.report.page import Chart, Table
from pipelines.report.sensitivities import percent_of_one, sensitivities
from pruning.costs.accounting import Accounting
from pruning.models.checkpoint import Checkpoint
from pruning.shape import ModelShape
from tests.pipelines.conftest import Cli, Search


def test_the_page_shows_what_the_allocation_was_chosen_from(
    search: Search, cli: Cli, checkpoint_folder: Path
) -> None:
    """Its whole path is scored on the block set, and the page does not say that blocks went."""
    found = search(
        "search=allocation", "search.distribution=[0,1,1]", "search.target_ratio=0.12",
        "search.mlp_group_channels=8",
    )  # fmt: skip
    assert found.status == 0, found.output
    written = json.loads((found.folder / "allocation.json").read_text())
    last = written["rounds"][-1]
    runs = read_runs([str(found.folder)])
    section = sensitivities(runs)
    assert section is not None

    [chart] = [part for part in section.parts if isinstance(part, Chart)]
    panels = [trace for trace in chart.figure["data"] if trace["type"] == "heatmap"]
    crosses = [trace for trace in chart.figure["data"] if trace["type"] == "scatter"]
    base, taken = ModelShape.parse(last["base"]), ModelShape.parse(last["shape"])
    shown = {
        (unit, layer, name): value
        for unit, panel in zip(("kv_heads", "mlp_channels"), panels, strict=True)
        for layer, row in zip(panel["y"], panel["z"], strict=True)
        for name, value in zip(panel["x"], row, strict=True)
        if value is not None
    }
    assert len(shown) == len(last["changes"])
    for change in last["changes"]:
        step = change["size"] - getattr(base.layers[change["layer"]], change["unit"])
        name = f"{step:+d}" if step else "0"
        assert shown[change["unit"], change["layer"], name] == pytest.approx(1000 * change["kl"])
    for unit, points in zip(("kv_heads", "mlp_channels"), crosses, strict=True):
        for layer, name in zip(points["y"], points["x"], strict=True):
            size = getattr(base.layers[layer], unit) + int(name)
            assert size == getattr(taken.layers[layer], unit)
        assert len(points["y"]) == len(base.layers)

    foretold, cheapest = (part for part in section.parts if isinstance(part, Table))
    assert len(foretold.rows) == sum(len(each["solutions"]) for each in written["rounds"])
    solution = last["solutions"][-1]
    assert foretold.rows[-1][2:4] == (
        f"{1000 * solution['predicted_kl']:+.2f}", f"{1000 * solution['kl']:+.2f}"
    )  # fmt: skip
    costs = [float(str(row[1])) for row in cheapest.rows if row[1]]
    assert costs == sorted(costs)

    accounting = Accounting(Checkpoint(checkpoint_folder).config())
    one_less = ModelShape.parse(f"3x47 3x48*{len(base.layers) - 1}")
    percent = percent_of_one(runs[0])["mlp_channels"]
    assert percent == pytest.approx(100 * accounting.ratio(one_less))

    page = cli("report", f"runs=[{found.folder}]")
    assert page.status == 0, page.output
    html = (page.folder / "report.html").read_text()
    assert 'id="sensitivities"' in html
    assert "Steps scored on the block text" in html
    assert "Steps that removed" not in html, "it removes no block"
    assert "two charts" not in html
    assert "Fragile choices" not in html, "no step had a second candidate"


def test_other_runs_have_no_such_section(search: Search) -> None:
    found = search("search=uniform", "search.distribution=[0,1,0]", "search.target_ratio=0.12")
    assert found.status == 0, found.output
    assert sensitivities(read_runs([str(found.folder)])) is None
